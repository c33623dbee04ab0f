"""The limits that were promised, against the figures of one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from tests.bench.book import find, quantity
from tests.bench.figures import Figure, percentile

_LARGEST = "10000 x 10"
_NATIVE = "daemon, imaginary IPVS"


class Target(msgspec.Struct, frozen=True):
    """At most so much of a figure; `percent` of its samples are not above what counts."""

    what: str
    case: str
    peer: str
    limit: float
    percent: int = 50
    size: str = _LARGEST


TARGETS = (
    Target("decode, compile, plan and encode everything, natively", "records to bytes", "whole", 2.5),
    Target("one event to bytes, natively, p90", "one event to bytes", "edgeproxy", 0.001, 90),
    Target("resident memory, 100,000 endpoints", "memory, steady", "edgeproxy", 200.0),
    Target("idle, audit included, natively", "idle for 60 s: CPU", _NATIVE, 0.2),
    Target(
        "a change beside audits of the kernel, natively, p99",
        "put to kernel, audit every second",
        _NATIVE,
        0.05,
        99,
    ),
    Target(
        "a change beside audits of the store, natively, p99",
        "answer to kernel, store audited",
        _NATIVE,
        0.05,
        99,
    ),
    Target("write operations of a restart", "restart, kernel right: write operations", "edgeproxy", 0.0),
)


class Verdict(msgspec.Struct, frozen=True):
    """A target and what was measured; both in the figure's unit."""

    target: Target
    value: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether it keeps within its limit."""
        return self.value <= self.target.limit

    def __str__(self) -> str:
        measured, limit = quantity(self.value, self.unit), quantity(self.target.limit, self.unit)
        return f"{self.target.size:>12}  {self.target.what}: {measured} (at most {limit}: {'met' if self.met else 'not met'})"


def verdicts(figures: Sequence[Figure]) -> Iterator[Verdict]:
    """All that these figures allow."""
    for target in TARGETS:
        figure = find(figures, target.case, target.peer, target.size)
        if figure is not None:
            yield Verdict(target, percentile(figure.samples, target.percent), figure.unit)
