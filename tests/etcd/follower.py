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
    """Runs a Store. `state` is the folded result, `events` all (key, mod revision), in order.

    before: the follower of an earlier process, whose ledger and state this one begins with.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        timing: Timing = QUICK,
        chance: Callable[[], float] = random.random,
        before: Follower | None = None,
    ) -> None:
        ledger = before.store.ledger() if before else None
        self.store = Store(settings, timing, chance=chance, ledger=ledger)
        self.state: dict[bytes, bytes] = dict(before.state) if before else {}
        self.revision = ledger.revision if ledger else 0
        self.snapshots: list[Snapshot] = []
        self.events: list[tuple[bytes, int]] = []
        self.batches = 0
        self.gaps: list[Batch] = []

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
            case Batch(gap=True):
                self._fold_gap(change)
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
        self._fold_events(batch)

    def _fold_gap(self, batch: Batch) -> None:
        assert batch.events or not self.snapshots, "an empty batch that is not the first"
        assert batch.revision >= self.revision
        assert all(event.mod_revision <= batch.revision for event in batch.events)
        self.gaps.append(batch)
        self._fold_events(batch)

    def _fold_events(self, batch: Batch) -> None:
        for event in batch.events:
            self.events.append((event.key, event.mod_revision))
            if event.value is None:
                assert self.state.pop(event.key, None) is not None, f"delete of unknown {event.key!r}"
            else:
                self.state[event.key] = event.value
