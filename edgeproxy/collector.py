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
    """Nothing is collected in here, and what there is at the end the collector never looks at again.

    For filling the books, never for waiting. Without the last each end would be followed by a
    collection of all that came in between.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
