"""Reads bad records back, revision by revision, to their last good version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from edgeproxy.etcd.changes import Compacted
from edgeproxy.etcd.errors import StoreError
from edgeproxy.etcd.store import Store
from edgeproxy.reconcile import Reconciler

log = logging.getLogger(__name__)

RESOLVE_AGAIN = 5.0
"""Seconds to wait where the store does not answer."""


class Resolver:
    """One search at a time, beside everything else; `wake` is called when it has found something.

    task: the search that is on, None without one.
    """

    def __init__(self, store: Store, reconciler: Reconciler, wake: Callable[[], None]) -> None:
        self._store = store
        self._reconciler = reconciler
        self._wake = wake
        self.task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Search for what the catalog lacks, if anything."""
        if self.task is None and self._reconciler.catalog.unresolved():
            self.task = asyncio.create_task(self._resolve(), name="read bad records back")

    async def _resolve(self) -> None:
        catalog = self._reconciler.catalog
        try:
            while found := catalog.unresolved():
                bad = found[0]
                answer = await self._store.value_before(bad.key, bad.mod_revision)
                if isinstance(answer, Compacted):
                    self._reconciler.mark(catalog.hold(bad.key))
                else:
                    self._reconciler.mark(catalog.supply(bad.key, answer).changed)
            self.task = None
        except StoreError as error:
            log.info("a bad record's history cannot be read yet: %s", error)
            asyncio.get_running_loop().call_later(RESOLVE_AGAIN, self._again)
        self._wake()

    def _again(self) -> None:
        self.task = None
        self._wake()
