"""docs/benchmarks.md and its plots, from what the last runs left behind. Runs on the host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.bench.book import find, shown
from tests.bench.figures import Figure, Run, read
from tests.bench.load import Load
from tests.bench.native import profile
from tests.bench.plot import Plot, svg
from tests.bench.ratios import ratios, services_of

PROFILED = Load(4000, 10)
_BEGIN, _END = "<!-- profile: written by make bench -->", "<!-- end of profile -->"

_HEAD = """\
# Benchmarks

Written by `make bench`; what was done to get here is in [performance.md](performance.md). Figures from one machine and one run:
the ratios travel, the seconds do not.
"""

_READING = """\
## How to read and repeat it

    make bench                                                # all of it: about an hour
    .venv/bin/python -m tests.bench --quick                   # a few minutes: shows that it works
    .venv/bin/python -m tests.bench --sizes 1000,4000         # chosen sizes
    .venv/bin/python -m tests.bench native                    # only what needs no IPVS

- The lab is a virtual machine. Where its processor is emulated (no KVM), everything in it is some 16 times slower than native,
  interpreted Python even more so than compiled peers; more where others use the machine. All peers run in
  the same machine, one after the other, on the same records.
- *start*: from the start of the process until the kernel holds everything; etcd, with the records in it, runs already. For edgeproxy this contains the start of Python
  and the imports, which emulation makes tens of seconds. *engine* is the same without them: the daemon's reconciler in a running process.
- *kernel apply* is the part in which the kernel is written: IPVS and nft elements (the peers write no elements).
- *one endpoint added*: from the put to etcd, or the signal or the command of a peer, until IPVS shows the real server. IPVS notifies nobody, so it is polled: a tenth of
  each figure can be error. *accepted*: until etcd has acknowledged the put, or the peer's command returned. keepalived's new configuration is written before the clock starts.
- *daemon, imaginary IPVS*: the daemon natively, where the kernel has no `ip_vs`. Everything is real but the IPVS socket, which is a dictionary: its times
  lack the kernel's own part (microseconds an operation), its memory contains the dictionary.
- A peer is a class in `tests/bench/peers.py`; a figure with "more than" was capped at five minutes.
"""


_BOUNDS = """\
## Aims that are missed, and what bounds them

- *Restart under a third of the cold time.* A restart writes nothing, but decodes and compiles every record as a cold start does, and reads the kernel back; and
  a cold start's writing is only a fifth to a quarter of it. The profile and the sums are in [performance.md](performance.md).
- *One change 100 times faster than keepalived's reload.* In the emulated machine about 60 % of a change are the acknowledged put to etcd
  (*accepted* in the table), and the rest is interpreted Python, which emulation slows down about twice as much as a compiled peer. The same change natively, without the kernel's part, is in
  the table *Natively*: a few milliseconds, at any size.
- *Kernel apply.* Of edgeproxy's own time in it, more than half is Python (encoding, books) under emulation; natively those parts take
  0.1 s for 4,000 x 10.
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
    parts += list(_plots(figures, docs / "plots"))
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


def _run_text(run: Run) -> Iterator[str]:
    yield f"`{run.command}`, {run.began}, {run.seconds / 60:.0f} minutes. Machine: {'; '.join(run.machine)}. Beside it ran: {run.beside}."
    yield from (f"**Note:** {note}." for note in run.notes)
    yield ""


def _tables(figures: Sequence[Figure]) -> Iterator[str]:
    """A row for each case and peer, a column for each size."""
    sizes = sorted({figure.size for figure in figures}, key=services_of)
    yield f"| case | who | {' | '.join(sizes)} |"
    yield f"|---|---|{'---:|' * len(sizes)}"
    for case, peer in dict.fromkeys((figure.case, figure.peer) for figure in figures):
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
            (directory / f"{name}.svg").write_text(
                svg(Plot(title, "services with 10 endpoints", "seconds", points))
            )
            yield f"![{title}](plots/{name}.svg)\n"


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
