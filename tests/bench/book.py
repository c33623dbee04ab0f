"""Collects figures and says each as it comes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from tests.bench.figures import Figure
from tests.bench.probe import Capped

CAP = 300.0
"""Seconds a peer may take for one thing; then the figure says "more than"."""


class Book:
    """The figures of a run."""

    def __init__(self, *, silent: bool = False) -> None:
        self.figures: list[Figure] = []
        self._silent = silent

    def note(self, figure: Figure) -> None:
        """Keep one and print it."""
        self.figures.append(figure)
        if not self._silent:
            print(f"{figure.case:40} {figure.peer:34} {figure.size:>10}  {shown(figure)}", flush=True)

    def add(self, case: str, peer: str, size: object, unit: str, samples: Sequence[float]) -> None:
        """Keep a figure made of these."""
        self.note(Figure(case, peer, str(size), unit, tuple(samples)))

    @contextlib.contextmanager
    def timed(self, case: str, peer: str, size: object) -> Iterator[None]:
        """The time of a block that is done once; one that is capped counts as a lower bound and goes on."""
        began = time.perf_counter()
        capped = False
        try:
            yield
        except Capped:
            capped = True
        self.note(Figure(case, peer, str(size), "s", (time.perf_counter() - began,), capped))

    def find(self, case: str, peer: str, size: object) -> Figure | None:
        """A figure of this run."""
        return find(self.figures, case, peer, size)


def find(figures: Sequence[Figure], case: str, peer: str, size: object) -> Figure | None:
    """The figure of a case, None if it was not measured."""
    wanted = (case, peer, str(size))
    return next((f for f in figures if (f.case, f.peer, f.size) == wanted), None)


def shown(figure: Figure) -> str:
    """`p50 41 ms, p90 ..` or one value."""
    if len(figure.samples) == 1:
        return ("more than " if figure.capped else "") + quantity(figure.p50, figure.unit)
    values = ((name, getattr(figure, name)) for name in ("p50", "p90", "p99"))
    text = ", ".join(f"{name} {quantity(value, figure.unit)}" for name, value in values)
    return f"{text} of {len(figure.samples)}"


def quantity(value: float, unit: str) -> str:
    """A value with three digits and its unit; seconds as s, ms or µs."""
    if unit == "s":
        for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if value >= scale:
                return f"{value / scale:.3g} {name}"
        return f"{value * 1e6:.2f} µs"
    if unit in ("count", "ratio"):
        return f"{value:.0f}" if unit == "count" else f"{value:.3g}"
    return f"{value:.3g} {unit}"
