"""What a run leaves behind: figures as values, written as JSON and read back by the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """One measured quantity.

    case: what was done. peer: who did it, or the part of edgeproxy that was measured. size: of the load.
    unit: "s", "count", "MiB", "%" ...; a smaller value is better in all of them but "conn/s" and "ratio".
    samples: as measured; one for what is done once. capped: the sample is a lower bound.
    """

    case: str
    peer: str
    size: str
    unit: str
    samples: tuple[float, ...]
    capped: bool = False

    @property
    def p50(self) -> float:
        """The median; of one sample, itself."""
        return percentile(self.samples, 50)

    @property
    def p90(self) -> float:
        """Nine of ten are not above it."""
        return percentile(self.samples, 90)

    @property
    def p99(self) -> float:
        """99 of 100 are not above it; with fewer samples, the largest."""
        return percentile(self.samples, 99)


class Run(msgspec.Struct, frozen=True):
    """All figures of one command on one machine.

    machine, beside: what it ran on, and what else ran there meanwhile.
    """

    command: str
    began: str
    seconds: float
    machine: tuple[str, ...]
    beside: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("a figure without samples")
    ordered = sorted(samples)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def write(run: Run, path: Path) -> None:
    """Leave a run for the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run)))


def read(path: Path) -> Run | None:
    """A run that was left, None if there is none."""
    return msgspec.json.decode(path.read_bytes(), type=Run) if path.exists() else None
