"""The hand-over of changes from the reading task to the task that applies them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgeproxy.etcd.changes import Batch, Change, Snapshot, coalesce


class Delivery:
    """A queue that never makes the reader wait and stays bounded.

    A reader that stalls costs etcd memory and is cut off, so `put` does not block. A snapshot makes
    all that waits before it void. More than `backlog` waiting batches are merged into one, which
    bounds the queue by the number of distinct keys; `coalesced` counts how often.
    """

    def __init__(self, backlog: int) -> None:
        self.coalesced = 0
        self._backlog = backlog
        self._waiting: list[Change] = []
        self._filled = asyncio.Event()
        self._tell: Callable[[], None] = _nobody

    def subscribe(self, tell: Callable[[], None]) -> None:
        """Have something called, inside the reader, whenever the first change begins to wait."""
        self._tell = tell
        if self._waiting:
            tell()

    def put(self, change: Change) -> None:
        """Add a change."""
        first = not self._waiting
        if isinstance(change, Snapshot):
            self._waiting.clear()
        self._waiting.append(change)
        if len(self._waiting) > self._backlog + 1:
            self._coalesce()
        self._filled.set()
        if first:
            self._tell()

    @property
    def waiting(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._waiting)

    async def wait(self) -> None:
        """Return once something is waiting; takes nothing."""
        await self._filled.wait()

    def drain(self) -> list[Change]:
        """Take all that waits, oldest first: at most one snapshot, then at its head."""
        waiting, self._waiting = self._waiting, []
        self._filled.clear()
        return waiting

    def _coalesce(self) -> None:
        self.coalesced += 1
        snapshots = [change for change in self._waiting if isinstance(change, Snapshot)]
        batches = [change for change in self._waiting if isinstance(change, Batch)]
        self._waiting = [*snapshots, coalesce(batches)]


def _nobody() -> None:
    """Who is told before anybody has subscribed."""
