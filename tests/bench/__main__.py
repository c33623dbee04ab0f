"""Command line of the figures.

python -m tests.bench            everything: in the lab, natively, and the report
python -m tests.bench --quick    the same, small: for development
python -m tests.bench lab        only what needs IPVS, on this machine's kernel
python -m tests.bench native     only what does not
python -m tests.bench report     docs/benchmarks.md from the figures of the last runs
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.book import Book
from tests.bench.figures import Run, write
from tests.bench.ratios import lines
from tests.bench.targets import verdicts

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".cache" / "results"
LAB_DEADLINE, LAB_SILENCE = "9000", "1200"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    parts: dict[str, Callable[[argparse.Namespace], int]] = {
        "all": _all,
        "lab": _lab,
        "native": _native,
        "report": _report,
    }
    return parts[arguments.part](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("part", nargs="?", default="all", choices=("all", "lab", "native", "report"))
    add(
        "--sizes",
        type=_numbers,
        metavar="N,N",
        help="only these numbers of services (default: 100,1000,4000,10000, one large service, the data path)",
    )
    add("--endpoints", type=int, default=10, metavar="N", help="endpoints of each service (default: 10)")
    add("--peers", type=lambda text: tuple(text.split(",")), default=("ipvsadm", "keepalived", "edgeproxy"))
    add("--changes", type=int, metavar="N", help="samples of each kind of change (default: 200; quick: 5)")
    add("--burst", type=int, metavar="N", help="endpoints of the burst (default: 1000; quick: 100)")
    add("--idle", type=float, metavar="SECONDS", help="how long to watch it idle (default: 60; quick: 0)")
    add(
        "--quick",
        action="store_true",
        help="small sizes, few samples: shows that it works, no figures to quote",
    )
    add(
        "--beside",
        default="nothing else that we know of",
        help="what else ran on the machine, for the report",
    )
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _all(arguments: argparse.Namespace) -> int:
    options = [option for option in sys.argv[1:] if option != "all"]
    bench = [sys.executable, "-m", "tests.bench"]
    inside = ["python", "-m", "tests.bench", "lab", *options]
    machine = [sys.executable, "-m", "tests.lab", "run", "--deadline", LAB_DEADLINE, "--silence", LAB_SILENCE]
    for argv in ([*machine, "--", *inside], [*bench, "native", *options], [*bench, "report", *options]):
        code = subprocess.run(argv, cwd=ROOT, check=False).returncode
        if code:
            return code
    return 0


def _lab(arguments: argparse.Namespace) -> int:
    from tests.bench import lab

    extent = lab.Extent(
        sizes=arguments.sizes or ((20, 100) if arguments.quick else (100, 1000, 4000, 10000)),
        endpoints=arguments.endpoints,
        peers=arguments.peers,
        large=0 if arguments.sizes else 200 if arguments.quick else 5000,
        data_path=not arguments.sizes,
        **_samples(arguments),
    )
    return _recorded("lab", arguments, lambda book: lab.run(extent, book))


def _native(arguments: argparse.Namespace) -> int:
    from tests.bench import native

    extent = native.Extent(
        sizes=arguments.sizes or ((100, 1000) if arguments.quick else (100, 1000, 4000, 10000)),
        endpoints=arguments.endpoints,
        fleet=(20, 2.0) if arguments.quick else (200, 20.0),
        **_samples(arguments),
    )
    return _recorded("native", arguments, lambda book: native.run(extent, book))


def _samples(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options both kinds of run share; what is not given depends on `--quick`."""
    defaults = {"changes": (200, 5), "burst": (1000, 100), "idle": (60.0, 0.0)}
    given = ((name, getattr(arguments, name)) for name in defaults)
    return {name: defaults[name][arguments.quick] if value is None else value for name, value in given}


def _report(arguments: argparse.Namespace) -> int:
    from tests.bench import report

    report.write_all(RESULTS, ROOT / "docs")
    return 0


def _recorded(name: str, arguments: argparse.Namespace, work: Callable[[Book], None]) -> int:
    """Do it and leave the figures, those of a run that was cut short, too."""
    book = Book()
    began, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    notes: tuple[str, ...] = ("cut short",)
    try:
        work(book)
        notes = ()
    finally:
        directory = Path(os.environ.get("LAB_RESULTS", RESULTS))
        run = Run(
            command=shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
            began=began.isoformat(timespec="seconds"),
            seconds=time.monotonic() - clock,
            machine=_machine(),
            beside=arguments.beside,
            figures=tuple(book.figures),
            notes=notes,
        )
        write(run, directory / f"bench-{name}.json")
    print("\n".join([*lines(book.figures), *map(str, verdicts(book.figures))]), flush=True)
    return 0


def _machine() -> tuple[str, ...]:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return (
        f"{os.cpu_count()} x {model}",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
    )


if __name__ == "__main__":
    sys.exit(main())
