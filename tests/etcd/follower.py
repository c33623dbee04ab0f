"""A consumer that keeps what the daemon would keep, and checks every promise on the way."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Self

from edgeproxy.etcd.changes import Batch, Change, Snapshot
from edgeproxy.etcd.health import StoreHealth
from edgeproxy.etcd.settings import EtcdSettings, Timing
from edgeproxy.etcd.store import Store

# Everything quick; pings stay at etcd's own minimum.
QUICK = Timing(
    backoff_first=0.05,
    backoff_most=0.5,
    refused=0.4,
    herd=0.05,
    probe=1.0,
    probe_again=0.1,
    probe_deadline=1.0,
    audit_grace=0.3,
    audit_again=0.5,
)


class Follower:
    """Runs a Store. `state` is the folded result, `events` all (key, mod revision), in order."""

    def __init__(
        self,
        settings: EtcdSettings,
        timing: Timing = QUICK,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.store = Store(settings, timing, chance=chance)
        self.state: dict[bytes, bytes] = {}
        self.revision = 0
        self.snapshots: list[Snapshot] = []
        self.events: list[tuple[bytes, int]] = []
        self.batches = 0

    async def __aenter__(self) -> Self:
        self._runner = asyncio.create_task(self.store.run())
        self._consumer = asyncio.create_task(self._consume())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._runner, self._consumer):
            task.cancel()
        for task in (self._runner, self._consumer):
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def health(self) -> StoreHealth:
        return self.store.health

    def following(self) -> bool:
        """Whether a stream is open now. A broken promise fails here."""
        for task in (self._runner, self._consumer):
            if task.done():
                task.result()
                raise AssertionError("the store's loop ended")
        return self.health.endpoint is not None

    async def _consume(self) -> None:
        while True:
            await self.store.changes.wait()
            for change in self.store.changes.drain():
                self._fold(change)

    def _fold(self, change: Change) -> None:
        match change:
            case Snapshot():
                self.snapshots.append(change)
                self.state = {record.key: record.value for record in change.records}
            case Batch():
                self._fold_batch(change)
        self.revision = change.revision

    def _fold_batch(self, batch: Batch) -> None:
        assert batch.events, "an empty batch"
        revisions = [event.mod_revision for event in batch.events]
        assert revisions == sorted(revisions), "events out of order"
        assert revisions[0] > self.revision, f"revision {revisions[0]} twice, had {self.revision}"
        assert revisions[-1] == batch.revision
        self.batches += 1
        for event in batch.events:
            self.events.append((event.key, event.mod_revision))
            if event.value is None:
                assert self.state.pop(event.key, None) is not None, f"delete of unknown {event.key!r}"
            else:
                self.state[event.key] = event.value
