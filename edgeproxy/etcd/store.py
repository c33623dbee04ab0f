"""The store as the daemon sees it: changes come in, for ever; trouble is told, not thrown.

    store = Store(settings)
    task = asyncio.create_task(store.run())
    while True:
        await store.changes.wait()
        for change in store.changes.drain(): ...     # Snapshot or Batch

The first change is a Snapshot; a store that was made with the ledger of an earlier process may
begin with a Batch instead, which continues what that process knew.

While etcd is unreachable, hung, leaderless or refuses us, nothing is delivered: the last state
stands. `health` says how old the last contact is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from edgeproxy.etcd.backoff import Backoff
from edgeproxy.etcd.changes import Cause, Compacted, KeyValue
from edgeproxy.etcd.client import Connection
from edgeproxy.etcd.delivery import Delivery
from edgeproxy.etcd.endpoint import Endpoint, parse_endpoint
from edgeproxy.etcd.errors import (
    AuditDiffered,
    HistoryCompacted,
    HistoryReplaced,
    LoginRefused,
    Refused,
    StoreError,
    TokenRefused,
    Unreachable,
)
from edgeproxy.etcd.health import StoreHealth
from edgeproxy.etcd.ledger import Ledger, LedgerImage
from edgeproxy.etcd.session import Following, Session
from edgeproxy.etcd.settings import EtcdSettings, Timing

log = logging.getLogger(__name__)


class Store:
    """Follows everything below one prefix, over one connection to one member at a time.

    `changes` delivers; `health` is updated in place. `chance` gives numbers in [0, 1).
    ledger: what an earlier process was told, None to begin anew.
    Make it inside the event loop that runs it. Raises ValueError for an endpoint that is no URL.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        ledger: LedgerImage | None = None,
    ) -> None:
        self._settings = settings
        self._timing = timing or Timing()
        self._chance = chance
        self._endpoints = _shuffled([parse_endpoint(text) for text in settings.endpoints], chance)
        self._connection: Connection | None = None
        self._told: set[str] = set()
        self.health = StoreHealth()
        self.changes = Delivery(self._timing.backlog)
        self._following = Following(
            ledger=Ledger.of(ledger) if ledger else Ledger(),
            delivery=self.changes,
            health=self.health,
            backoff=Backoff(self._timing, len(self._endpoints), chance),
            clock=clock,
            random=chance,
            relist=None if ledger else Cause.START,
            audit_due=float("inf"),
        )

    async def run(self) -> None:
        """Follow the store until cancelled; any other exception out of here is a bug."""
        turn = 0
        while True:
            try:
                await self._follow(self._endpoints[turn % len(self._endpoints)])
            except StoreError as error:
                turn += 1
                self._note(error)
                await asyncio.sleep(self._following.backoff.failed(error))

    def ledger(self) -> LedgerImage | None:
        """What was delivered and taken so far, for a later process; None while something is yet to be taken."""
        if not self._following.begun or self.changes.waiting:
            return None
        return self._following.ledger.image()

    async def value_before(self, key: bytes, revision: int) -> KeyValue | Compacted | None:
        """The key as it was just before `revision`; None if it did not exist then.

        To read a bad record back, call again with the result's `mod_revision`. Raises
        StoreError where etcd does not answer; nothing is retried.
        """
        if revision <= 1:
            return None
        if self._connection is None:
            raise Unreachable(self.health.problem or "not connected to etcd")
        try:
            return (await self._connection.get(key, revision - 1)).record
        except HistoryCompacted:
            return Compacted(revision=revision - 1)

    async def _follow(self, endpoint: Endpoint) -> None:
        """One connection, from opening to whatever ends it."""
        self.health.connects += 1
        connection = Connection(endpoint, self._settings, self._timing)
        self._connection = connection
        try:
            await Session(connection, self._following, self._settings, self._timing).run()
        finally:
            self.health.endpoint = None
            self._connection = None
            await connection.close()

    def _note(self, error: StoreError) -> None:
        """Keep the reason for status, log it once per outage, and remember what must be listed."""
        sentence = str(error)
        if self.health.problem is None:
            self._told.clear()
        self.health.problem = sentence
        self.health.operator_needed = isinstance(error, Refused)
        match error:
            case HistoryCompacted():
                self._following.relist = Cause.COMPACTED
            case HistoryReplaced():
                self._following.relist = Cause.REPLACED
            case AuditDiffered():
                self._following.relist = Cause.AUDIT
            case LoginRefused() | TokenRefused():
                self.health.login_failures += 1
        level = logging.DEBUG if sentence in self._told else logging.WARNING
        self._told.add(sentence)
        log.log(level, "%s; the last known records stay in force", sentence)


def _shuffled(endpoints: list[Endpoint], chance: Callable[[], float]) -> tuple[Endpoint, ...]:
    """Hosts must not all start with the same member."""
    return tuple(sorted(endpoints, key=lambda _: chance()))
