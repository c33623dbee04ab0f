"""Python's garbage collector, kept out of the way of a daemon with large books.

The books live as long as the daemon, and hardly anything in them is part of a cycle. With 100,000
endpoints a full collection stops everything for 75 ms, and while they are filled there is one
again and again (docs/performance.md).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is collected in here: for filling the books, never for waiting.

    The end is followed by a collection of all that came in between, but for what was spared by then.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def spare() -> None:
    """Take all objects there are out of the collector's view, garbage that it would find included: at a start only."""
    gc.freeze()
