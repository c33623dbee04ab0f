"""The ratios that were promised, from the figures of one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from tests.bench.book import find, quantity
from tests.bench.figures import Figure


class Ratio(msgspec.Struct, frozen=True):
    """How much one figure is above another, in seconds.

    at_least: a capped figure is in it, the true ratio is larger. wanted: the aim, 0 where there is none.
    """

    what: str
    size: str
    above: float
    below: float
    wanted: float
    at_least: bool = False

    @property
    def value(self) -> float:
        """Above divided by below."""
        return self.above / self.below

    @property
    def met(self) -> bool:
        """Whether it reaches its aim."""
        return self.value >= self.wanted

    def __str__(self) -> str:
        bound = "at least " if self.at_least else ""
        aim = f" (aim: {self.wanted:g}, {'met' if self.met else 'not met'})" if self.wanted else ""
        values = f"{quantity(self.above, 's')} / {quantity(self.below, 's')}"
        return f"{self.size:>12}  {self.what}: {bound}{self.value:.3g}{aim}   [{values}]"


_WANTED = (
    (
        "ipvsadm -R / kernel apply",
        ("start, kernel empty", "ipvsadm"),
        ("engine, kernel empty", "kernel apply"),
        10.0,
    ),
    (
        "keepalived start / kernel apply",
        ("start, kernel empty", "keepalived"),
        ("engine, kernel empty", "kernel apply"),
        1.0,
    ),
    (
        "ipvsadm -R / edgeproxy start",
        ("start, kernel empty", "ipvsadm"),
        ("start, kernel empty", "edgeproxy"),
        0.0,
    ),
    (
        "keepalived start / edgeproxy start",
        ("start, kernel empty", "keepalived"),
        ("start, kernel empty", "edgeproxy"),
        0.0,
    ),
    (
        "keepalived reload / one endpoint put",
        ("one endpoint added", "keepalived"),
        ("one endpoint added", "edgeproxy"),
        100.0,
    ),
    (
        "keepalived reload / the daemon's share of a change",
        ("one endpoint added", "keepalived"),
        ("one endpoint re-weighted: within the daemon", "edgeproxy"),
        0.0,
    ),
    (
        "ipvsadm -a / one endpoint put",
        ("one endpoint added", "ipvsadm"),
        ("one endpoint added", "edgeproxy"),
        0.0,
    ),
    ("cold / restart, engine", ("engine, kernel empty", "whole"), ("engine, kernel right", "whole"), 3.0),
    (
        "cold / restart, daemon",
        ("start, kernel empty", "edgeproxy"),
        ("restart, kernel right", "edgeproxy"),
        3.0,
    ),
    (
        "cold / restart, daemon, natively",
        ("start to ready", "daemon, imaginary IPVS"),
        ("restart to ready, kernel right", "daemon, imaginary IPVS"),
        3.0,
    ),
)


LARGE = 4000
"""Services from which on the aims hold; below, the ratios are told for comparison."""


def ratios(figures: Sequence[Figure]) -> Iterator[Ratio]:
    """All that these figures allow; medians where there are many samples."""
    yield from _flatness(figures, "one change in the lab", "one endpoint added, in turns")
    yield from _flatness(figures, "one change natively", "put to kernel, one endpoint")
    for size in _sizes(figures):
        for what, (case, peer), (other_case, other), wanted in _WANTED:
            above, below = find(figures, case, peer, size), find(figures, other_case, other, size)
            if above and below and below.p50:
                aim = wanted if services_of(size) >= LARGE else 0.0
                yield Ratio(what, size, above.p50, below.p50, aim, at_least=above.capped)


def _flatness(figures: Sequence[Figure], what: str, case: str) -> Iterator[Ratio]:
    """One change on the smallest and on the largest load, measured in turns; 1 is flat."""
    found = [f for f in figures if f.case == case]
    if len(found) > 1:
        first, last = found[0], found[-1]
        size = f"{first.size} / {last.size}"
        yield Ratio(f"{what}, p50", size, first.p50, last.p50, 0.5)
        yield Ratio(f"{what}, p90", size, first.p90, last.p90, 0.5)


def lines(figures: Sequence[Figure]) -> Iterator[str]:
    """For people."""
    yield "\nRatios (medians; larger is better for edgeproxy):"
    yield from map(str, ratios(figures))


def services_of(size: str) -> int:
    """The services of a figure's size, 0 where it has none."""
    return int(size.partition(" x ")[0] or 0)


def _sizes(figures: Iterable[Figure]) -> list[str]:
    return sorted({figure.size for figure in figures}, key=services_of)
