"""python -m tests.conformance: renders docs/conformance.md; exit code 1 if anything is left out or failed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.conformance import report
from tests.lab.image import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "results", metavar="DIR",
                        help="where the test runs left theirs (default: .cache/results)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "conformance.md", metavar="FILE",
                        help="the document (default: docs/conformance.md)")  # fmt: skip
    arguments = parser.parse_args()
    shown, outcomes = report.tests(), report.results(arguments.results)
    arguments.output.write_text(report.render(shown, outcomes))
    wrong = [*report.gaps(shown), *report.failures(shown, outcomes)]
    for line in wrong:
        print(line, file=sys.stderr)
    print(
        f"{arguments.output}: {len(shown)} tests of behaviours, {len(wrong)} of them or of the numbers wrong"
    )
    return 1 if wrong else 0


sys.exit(main())
