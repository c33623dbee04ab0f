"""docs/benchmarks.md and its plots, from what the last runs left behind. Runs on the host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.bench.book import find, quantity, shown
from tests.bench.figures import Figure, Run, percentile, read
from tests.bench.load import Load
from tests.bench.native import profile
from tests.bench.plot import Bars, Plot, bars, svg
from tests.bench.ratios import ratios, services_of
from tests.bench.targets import verdicts

PROFILED = Load(4000, 10)
_BEGIN, _END = "<!-- profile: written by make bench -->", "<!-- end of profile -->"

_HEAD = """\
# Benchmarks

Written by `make bench`; what was done to get here is in [performance.md](performance.md). Figures from one machine, one run in the lab and one natively:
the ratios travel, the seconds do not.
"""

_READING = """\
## How to read and repeat it

    make bench                                                # all of it: about three quarters of an hour
    .venv/bin/python -m tests.bench --quick                   # a few minutes: shows that it works
    .venv/bin/python -m tests.bench --sizes 1000,4000         # chosen sizes
    .venv/bin/python -m tests.bench native                    # only what needs no IPVS

- The lab is a virtual machine. Where its processor is emulated (no KVM), everything in it is some 16 times slower than native,
  interpreted Python even more so than compiled peers; more where others use the machine. All peers run in
  the same machine, one after the other, on the same records.
- *start*: from the start of the process until the kernel holds everything; etcd, with the records in it, runs already. For edgeproxy this contains the start of Python
  and the imports, which emulation makes two seconds. *engine* is the same without them: the daemon's reconciler in a running process.
- *kernel apply* is the part in which the kernel is written: IPVS and nft elements (the peers write no elements).
- *one endpoint added*: from the put to etcd, or the signal or the command of a peer, until IPVS shows the real server. IPVS notifies nobody, so it is polled: a tenth of
  each figure can be error. *accepted*: until etcd has acknowledged the put, or the peer's command returned. keepalived's new configuration is written before the clock starts.
- *daemon, imaginary IPVS*: the daemon natively, where the kernel has no `ip_vs`. Everything is real but the IPVS socket, which is a dictionary: its times
  lack the kernel's own part (microseconds an operation), its memory contains the dictionary. For *restart to ready* it leaves its state as the kernel would tell it.
- A peer is a class in `tests/bench/peers.py`; a figure with "more than" was capped at five minutes.
"""


_BOUNDS = """\
## Aims, and what bounds them

- *Kernel apply against `ipvsadm -R`.* The lab's whole run above is some commits older than the native one. Between them came: datagrams are made whole beside the kernel's
  work, and audits look at no service for what nobody has. A short run of the final code, both side by side again (2026-11-26,
  `python -m tests.bench lab --sizes 4000,10000 --peers ipvsadm,edgeproxy --changes 1 --burst 0 --idle 0`): 4,000 x 10 in 1.61 s against 17.7 s, 11 times; 10,000 x 10 in
  3.46 s against 41.4 s, 12 times. Of these 3.46 s the sending, in the kernel, takes 1.91 s, beside which Python makes the next datagrams; elements take 0.66 s.
- *Restart of the daemon, in the lab.* 2.4 s of it are the start of Python, its imports and the first steps, which do not depend on the load (*restart, kernel right* at
  100 x 10): natively that is 0.2 s. The native ratio is close to its aim and the machine is shared: runs of one day gave 2.8 to 3.3.
- The profile of the Python part and what was done about it are in [performance.md](performance.md).
"""


def write_all(results: Path, docs: Path) -> None:
    """Write what can be written.

    Raises:
        FileNotFoundError: there are no results at all.
    """
    lab, native = read(results / "bench-lab.json"), read(results / "bench-native.json")
    if lab is None and native is None:
        raise FileNotFoundError(f"no figures in {results}: run `make bench` first")
    runs = [run for run in (lab, native) if run]
    figures = [figure for run in runs for figure in run.figures]
    parts = [_HEAD]
    parts += ["## Ratios\n", *_ratio_table(figures)]
    parts += ["## Limits\n", *_limit_table(figures)]
    parts += ["## The data path\n", *_data_path_table(figures)]
    parts += list(_plots(figures, docs / "plots"))
    parts += list(_charts(figures, docs / "plots"))
    for title, run in (("In the lab", lab), ("Natively, without IPVS", native)):
        if run:
            parts += [f"## {title}\n", *_run_text(run), *_tables(run.figures)]
    (docs / "benchmarks.md").write_text("\n".join([*parts, _BOUNDS, _READING]))
    _write_profile(docs / "performance.md")


def _ratio_table(figures: Sequence[Figure]) -> Iterator[str]:
    yield "| services x endpoints | ratio | value | aim | |"
    yield "|---|---|---:|---:|---|"
    for ratio in ratios(figures):
        aim = f"{ratio.wanted:g}" if ratio.wanted else ""
        met = ("met" if ratio.met else "**not met**") if ratio.wanted else ""
        bound = "> " if ratio.at_least else ""
        yield f"| {ratio.size} | {ratio.what} | {bound}{ratio.value:.3g} | {aim} | {met} |"
    yield ""


def _limit_table(figures: Sequence[Figure]) -> Iterator[str]:
    yield "| services x endpoints | what | measured | at most | |"
    yield "|---|---|---:|---:|---|"
    for verdict in verdicts(figures):
        target = verdict.target
        measured, limit = quantity(verdict.value, verdict.unit), quantity(target.limit, verdict.unit)
        met = "met" if verdict.met else "**not met**"
        yield f"| {target.size} | {target.what} | {measured} | {limit} | {met} |"
    yield ""


def _data_path_table(figures: Sequence[Figure]) -> Iterator[str]:
    """Ratios only: what a connection costs in absolute terms says more about the machine."""
    yield "New connections through edgeproxy against other ways to the same servers; above 1, edgeproxy is better. Median of"
    yield "the rounds, and the middle half of them.\n"
    yield "| what | ways | ratio | from | to |"
    yield "|---|---|---:|---:|---:|"
    for figure in figures:
        if figure.unit == "ratio":
            low, high = (percentile(figure.samples, percent) for percent in (25, 75))
            case = figure.case.removeprefix("data path: ")
            yield f"| {case} | {figure.peer} | {figure.p50:.2f} | {low:.2f} | {high:.2f} |"
    yield ""


def _run_text(run: Run) -> Iterator[str]:
    yield f"`{run.command}`, {run.began}, {run.seconds / 60:.0f} minutes. Machine: {'; '.join(run.machine)}. Beside it ran: {run.beside}."
    yield from (f"**Note:** {note}." for note in run.notes)
    yield ""


def _tables(figures: Sequence[Figure]) -> Iterator[str]:
    """A row for each case and peer, a column for each size."""
    sizes = sorted({figure.size for figure in figures if figure.size}, key=services_of)
    if any(not figure.size for figure in figures if not figure.case.startswith("data path")):
        sizes.insert(0, "")
    yield f"| case | who | {' | '.join(sizes)} |"
    yield f"|---|---|{'---:|' * len(sizes)}"
    told = [figure for figure in figures if not figure.case.startswith("data path")]
    for case, peer in dict.fromkeys((figure.case, figure.peer) for figure in told):
        cells = [find(figures, case, peer, size) for size in sizes]
        yield f"| {case} | {peer} | {' | '.join(shown(cell) if cell else '' for cell in cells)} |"
    yield ""


_QUESTIONS = (
    (
        "apply",
        "How long does it take to fill an empty kernel?",
        {
            "ipvsadm -R": ("start, kernel empty", "ipvsadm"),
            "keepalived start": ("start, kernel empty", "keepalived"),
            "edgeproxy, kernel apply": ("engine, kernel empty", "kernel apply"),
            "edgeproxy, records to kernel": ("engine, kernel empty", "whole"),
        },
    ),
    (
        "change",
        "How long until one endpoint more is in the kernel?",
        {
            "keepalived reload": ("one endpoint added", "keepalived"),
            "ipvsadm -a": ("one endpoint added", "ipvsadm"),
            "edgeproxy, put to kernel": ("one endpoint added", "edgeproxy"),
        },
    ),
    (
        "restart",
        "How long does a start take, from the process to everything in the kernel?",
        {
            "kernel empty": ("start, kernel empty", "edgeproxy"),
            "restart, kernel right": ("restart, kernel right", "edgeproxy"),
            "the same, nothing kept": ("restart, kernel right, nothing kept", "edgeproxy"),
        },
    ),
    (
        "burst",
        "How long until a burst of 1,000 endpoints is in the kernel?",
        {
            "in the lab": ("burst of 1000 endpoints: in the kernel", "edgeproxy"),
            "natively, imaginary IPVS": ("burst of 1000 endpoints: converged", "daemon, imaginary IPVS"),
        },
    ),
    (
        "audit",
        "What does it cost to compare everything with the kernel, in the lab?",
        {"CPU of a whole audit": ("audit, nothing changed: CPU", "engine")},
    ),
    (
        "memory",
        "How much memory does the daemon take?",
        {
            "resident": ("memory, steady", "edgeproxy"),
            "at most": ("memory, most ever", "edgeproxy"),
        },
    ),
    (
        "native",
        "What does edgeproxy's own work cost, natively?",
        {
            "all records to bytes": ("records to bytes", "whole"),
            "put to kernel, daemon": ("put to kernel, one endpoint", "daemon, imaginary IPVS"),
            "one event to bytes": ("one event to bytes", "edgeproxy"),
        },
    ),
)


def _plots(figures: Sequence[Figure], directory: Path) -> Iterator[str]:
    directory.mkdir(exist_ok=True)
    for name, title, lines in _QUESTIONS:
        points = {
            line: found
            for line, (case, peer) in lines.items()
            if (found := [*_points(f for f in figures if (f.case, f.peer) == (case, peer))])
        }
        if points:
            unit = "MiB" if name == "memory" else "seconds"
            plot = Plot(title, "services with 10 endpoints", unit, points)
            (directory / f"{name}.svg").write_text(svg(plot))
            yield f"![{title}](plots/{name}.svg)\n"


_CHARTS = (
    (
        "data-path",
        "How many new connections a second go through?",
        "connections per second in the lab; the middle half of the rounds",
        "data path: connections",
        1.0,
    ),
    (
        "latency",
        "How long does one new connection take, alone?",
        "milliseconds in the lab; the middle half of the connections",
        "data path: latency",
        1000.0,
    ),
)
_FLEET = "How long does a change take to 200 followers, 20 changes a second?"


def _charts(figures: Sequence[Figure], directory: Path) -> Iterator[str]:
    for name, title, measured, case, scale in _CHARTS:
        found = [figure for figure in figures if figure.case == case and figure.unit != "ratio"]
        if found:
            yield _chart(directory, name, Bars(title, measured, {f.peer: _half(f, scale) for f in found}))
    fleet = [figure for figure in figures if figure.case.endswith(": put to delivered")]
    if fleet:
        lines = {f.case.removesuffix(": put to delivered"): _half(f, 1000.0) for f in fleet}
        measured = "milliseconds natively; the middle half of the deliveries"
        yield _chart(directory, "fleet", Bars(_FLEET, measured, lines))


def _chart(directory: Path, name: str, chart: Bars) -> str:
    (directory / f"{name}.svg").write_text(bars(chart))
    return f"![{chart.title}](plots/{name}.svg)\n"


def _half(figure: Figure, scale: float) -> tuple[float, float, float]:
    """The median and the ends of the middle half."""
    middle, low, high = (percentile(figure.samples, percent) * scale for percent in (50, 25, 75))
    return middle, low, high


def _points(figures: Iterable[Figure]) -> Iterator[tuple[float, float]]:
    for figure in figures:
        services, _, endpoints = figure.size.partition(" x ")
        if endpoints == "10":
            yield int(services), figure.p50


def _write_profile(path: Path) -> None:
    """Put the present profile between its marks in the document."""
    text = path.read_text() if path.exists() else f"# Performance\n\n{_BEGIN}\n{_END}\n"
    table = f"{_BEGIN}\nRecords to bytes, {PROFILED}, under cProfile (which triples the time):\n\n```\n{profile(PROFILED).strip()}\n```\n{_END}"
    path.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: table, text, flags=re.DOTALL))
