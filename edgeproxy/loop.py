"""The daemon's loop: waits for something to happen, lets the reconciler deal with it, tells about it.

What wakes it: the store, the kernel's notices (addresses, routes, rule set), signals, and four clocks
(audit, drains, watchdog, retry). There is nothing to do in between, and nothing polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator

from edgeproxy import collector, systemd
from edgeproxy.etcd.changes import Batch, Event, Snapshot
from edgeproxy.etcd.store import Store
from edgeproxy.execution import Wires
from edgeproxy.health import Health
from edgeproxy.hostfacts import read
from edgeproxy.keeper import Keeper
from edgeproxy.kept import Kept
from edgeproxy.kernel.conntrack import ConntrackError
from edgeproxy.kernel.netlink import NetlinkError
from edgeproxy.kernel.nft_events import RuleSetWatch
from edgeproxy.kernel.nft_script import NftError
from edgeproxy.kernel.routes import HostWatch, RouteError
from edgeproxy.metrics import Metrics
from edgeproxy.model import Finding, Reason
from edgeproxy.reconcile import Reconciler
from edgeproxy.record_time import changed_at
from edgeproxy.resolver import Resolver
from edgeproxy.settings import Settings
from edgeproxy.state import StateError
from edgeproxy.surroundings import survey

log = logging.getLogger(__name__)

KERNEL_TROUBLE = (NftError, NetlinkError, RouteError, ConntrackError, StateError, OSError)
"""What a wire raises: the environment's fault, tried again."""
DRAIN_TICK = 1.0
"""Seconds between two looks at draining real servers, while there are any."""
RETRY_FIRST, RETRY_MOST = 1.0, 30.0
NOTICE_REST = 0.05
"""Seconds to let a burst of notices (an interface coming up, a firewall reloading) end."""
BREATH = 0.005
"""Seconds of work between two looks at everything else. Most changes are done sooner: a turn of asyncio costs as
much as they do."""
AUDIT_SHARE = 0.0005
"""Share of the time that goes into looking for changes of IPVS by others, which nothing announces."""


class Loop:
    """One loop; :meth:`run` ends after :meth:`stop`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        reconciler: Reconciler,
        wires: Wires,
        health: Health,
        metrics: Metrics,
        after_sync: Callable[[], Awaitable[None]],
        keeper: Keeper,
        kept: Kept | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._keeper = keeper
        self._kept = kept
        self._reconciler = reconciler
        self._wires = wires
        self._health = health
        self._metrics = metrics
        self._after_sync = after_sync
        self._watchdog = systemd.Watchdog.from_environment()
        self._wake = asyncio.Event()
        self._stopping = False
        self._reload: Callable[[], Awaitable[None]] | None = None
        self._started, self._started_wall = time.monotonic(), time.time()
        self._received: list[float] = []
        self._changed_at: list[float] = []
        self._synced_once = False
        self._told_ready = False
        self._last_sync = float("-inf")
        self._next_audit = float("inf")
        self._next_settle = float("inf")
        self._retry_at, self._retry = float("-inf"), RETRY_FIRST
        self._host_changed_at: float | None = None
        self._rules_changed_at: float | None = None
        self._resolver = Resolver(store, reconciler, self._wake.set)
        self._trouble: Finding | None = None
        self._known: frozenset[Finding] = frozenset()
        self._counted: Counter[tuple[str, str]] = Counter()

    # -- what may be asked of it ---------------------------------------------------------------

    def stop(self) -> None:
        """End after the present step."""
        self._stopping = True
        self._wake.set()

    def request_reload(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Have a coroutine run between two turns."""
        self._reload = reload
        self._wake.set()

    def set_settings(self, settings: Settings) -> None:
        """Take new settings."""
        self._settings = settings
        now = time.monotonic()
        self._host_changed_at = now - NOTICE_REST
        if self._next_audit != float("inf"):
            self._next_audit = min(self._next_audit, now + settings.proxy.resync)

    def findings(self) -> tuple[Finding, ...]:
        """What the loop itself has to say."""
        found = [self._trouble] if self._trouble else []
        problem = self._store.health.problem
        if problem is not None:
            found.append(Finding("", 0, "[etcd] endpoints", Reason.STORE, problem))
        return tuple(found)

    # -- the loop ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn until stopped."""
        host, rules = HostWatch(self._wires.routes), RuleSetWatch(self._wires.nft)
        events = asyncio.get_running_loop()
        events.add_reader(host.fileno(), self._on_host, host)
        events.add_reader(rules.fileno(), self._on_rules, rules)
        self._store.changes.subscribe(self._on_store)
        try:
            systemd.status("waiting for etcd")
            while not self._stopping:
                await self._turn()
                await self._wait()
            await self._keep_at_last()
        finally:
            events.remove_reader(host.fileno())
            events.remove_reader(rules.fileno())
            host.close()
            rules.close()
            if (task := self._resolver.task) is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def _on_store(self) -> None:
        self._received.append(time.monotonic())
        self._health.queued()
        self._metrics.queued()
        self._wake.set()

    def _on_host(self, watch: HostWatch) -> None:
        if watch.read():
            self._host_changed_at = time.monotonic()
            self._wake.set()

    def _on_rules(self, watch: RuleSetWatch) -> None:
        if watch.read().ours:
            self._rules_changed_at = time.monotonic()
            self._wake.set()

    async def _wait(self) -> None:
        """Until something happens or a clock is due."""
        due = min(self._clocks(), default=float("inf")) - time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if due == float("inf") else max(due, 0.0)):
                await self._wake.wait()
        self._wake.clear()
        self._watchdog.progress()

    def _clocks(self) -> Iterator[float]:
        may_work = max(self._retry_at, self._last_sync + self._settings.proxy.min_sync)
        yield max(self._next_audit, may_work)
        yield max(self._next_settle, may_work)
        if self._work_waits():
            yield may_work
        if self._watchdog.turn is not None:
            yield time.monotonic() + self._watchdog.turn
        if not self._told_ready:
            yield self._started + self._settings.etcd.start_grace
        for changed in (self._host_changed_at, self._rules_changed_at):
            if changed is not None:
                yield changed + NOTICE_REST

    async def _turn(self) -> None:
        now = time.monotonic()
        if self._reload is not None:
            reload, self._reload = self._reload, None
            await reload()
            systemd.ready(self._summary())
        if _rested(self._host_changed_at, now):
            self._host_changed_at = None
            self._look_at_host()
        if _rested(self._rules_changed_at, now):
            self._rules_changed_at = None
            log.warning("somebody changed our nft tables: comparing the kernel with the records")
            self._next_audit = now
        may_work = self._may_work(now)
        with contextlib.nullcontext() if self._synced_once else collector.uncollected():
            self._take_changes()
            self._resolver.begin()
            if may_work and self._work_waits():
                await self._work(self._reconciler.sync(), full=not self._synced_once)
        if may_work:
            # After a failure the mirror is in doubt: nothing is built on it, and no lesser success covers it.
            if self._synced_once and now >= self._next_audit and not self._work_waits():
                self._next_audit = float("inf")
                budget = self._settings.proxy.resync * AUDIT_SHARE
                await self._work(self._reconciler.audit(budget), full=True)
                self._keep_now_and_then()
            if self._reconciler.actual.drains and now >= self._next_settle and not self._work_waits():
                await self._work(self._reconciler.settle(), full=False)
            self._next_settle = now + DRAIN_TICK if self._reconciler.actual.drains else float("inf")
        if not self._told_ready and now >= self._started + self._settings.etcd.start_grace:
            self._told_ready = True
            systemd.ready("waiting for etcd")

    def _work_waits(self) -> bool:
        """Nothing is done before the first complete snapshot: an unknown state is not an empty one."""
        return self._reconciler.catalog.revision > 0 and self._reconciler.pending

    def _may_work(self, now: float) -> bool:
        return now >= self._retry_at and now >= self._last_sync + self._settings.proxy.min_sync

    def _take_changes(self) -> None:
        for change in self._store.changes.drain():
            match change:
                case Snapshot(revision, records, cause):
                    log.info("%d records at revision %d (%s)", len(records), revision, cause)
                    self._kept = None
                    self._reconciler.load(records, revision)
                case Batch(revision, events, gap):
                    self._recall(revision)
                    self._reconciler.apply(events, revision, gap=gap)
                    self._note_times(events)

    def _recall(self, revision: int) -> None:
        """The store goes on where the state on disk ends: begin with that."""
        kept, self._kept = self._kept, None
        if kept is not None:
            log.info(
                "records of revision %d from disk, continued by the store at %d",
                kept.ledger.revision,
                revision,
            )
            self._reconciler.recall(kept)

    def _keep_now_and_then(self) -> None:
        """Have what is known written down for the next daemon, beside everything else."""
        if self._keeper.due(self._reconciler.catalog.revision) and (kept := self._to_keep()):
            self._keeper.write_beside(kept)

    async def _keep_at_last(self) -> None:
        self._take_changes()
        await self._keeper.written()
        if kept := self._to_keep():
            self._keeper.write(kept)

    def _to_keep(self) -> Kept | None:
        ledger = self._store.ledger()
        return self._reconciler.keep(ledger, self._keeper.build) if ledger else None

    def _note_times(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.value is not None and b'"changedAt"' in event.value:
                when = changed_at(self._settings.etcd.prefix, event)
                if when > self._started_wall:
                    self._changed_at.append(when)

    async def _work(self, steps: Iterator[None], *, full: bool) -> None:
        """Run work of the reconciler step by step; changes that come meanwhile are synced in between."""
        began = breath = time.monotonic()
        received, self._received = self._received, []
        revision = self._reconciler.applied
        try:
            for _ in steps:
                self._watchdog.progress()
                if time.monotonic() < breath + BREATH:
                    continue
                await asyncio.sleep(0)
                if full and self._synced_once and self._store.changes.waiting:
                    self._take_changes()
                    await self._work(self._reconciler.sync(), full=False)
                breath = time.monotonic()
        except KERNEL_TROUBLE as error:
            self._received = received + self._received
            self._failed(error, began)
            return
        await self._succeeded(began, received, full=full, news=revision != self._reconciler.applied)

    def _failed(self, error: Exception, began: float) -> None:
        self._metrics.synced(time.monotonic() - began, full=False, succeeded=False)
        self._reconciler.doubt()
        self._retry_at = time.monotonic() + self._retry
        message = f"{error}; trying again every {RETRY_MOST:g} s or sooner"
        if self._trouble is None or self._trouble.message != message:
            log.error("the kernel could not be brought up to date: %s", error)
        self._trouble = Finding("", 0, "", Reason.KERNEL, message)
        self._retry = min(self._retry * 2, RETRY_MOST)

    async def _succeeded(self, began: float, received: list[float], *, full: bool, news: bool) -> None:
        now = time.monotonic()
        self._trouble, self._retry = None, RETRY_FIRST
        self._last_sync = now
        if self._next_audit == float("inf"):
            self._next_audit = now + self._settings.proxy.resync
        self._metrics.synced(now - began, full=full, succeeded=True)
        self._health.applied(self._reconciler.applied, began)
        for when in received:
            self._metrics.event_applied(now - when)
        changed, self._changed_at = self._changed_at, []
        for when in changed:
            self._metrics.record_applied(time.time() - when)
        self._count_operations()
        self._tell_findings()
        await self._after_sync()
        if not self._synced_once:
            self._synced_once = True
            self._health.ready = True
            self._told_ready = True
            systemd.ready(self._summary())
            collector.spare()
        elif news:
            systemd.status(self._summary())

    def _summary(self) -> str:
        if not self._synced_once:
            return "waiting for etcd"
        reconciler = self._reconciler
        return (
            f"revision {reconciler.applied}: {len(reconciler.desired.parts)} services, "
            f"{len(reconciler.actual.servers)} virtual servers, {len(self._known)} findings"
        )

    def _count_operations(self) -> None:
        counts = self._reconciler.executor.counts
        for (kind, result), count in (counts - self._counted).items():
            self._metrics.operated(kind, count, succeeded=result == "done")
        self._counted = Counter(counts)

    def _tell_findings(self) -> None:
        """Log each finding once when it comes and once when it goes."""
        now = frozenset(self._reconciler.findings())
        if now == self._known:
            return
        for finding in sorted(now - self._known):
            fields = systemd.fields(key=finding.key, revision=finding.revision)
            log.warning("%s", _sentence(finding), extra=fields)
        for finding in sorted(self._known - now):
            log.info("settled: %s", _sentence(finding), extra=systemd.fields(key=finding.key))
        self._known = now

    def _look_at_host(self) -> None:
        try:
            self._reconciler.set_surroundings(survey(self._settings, read(self._wires.routes)))
        except RouteError as error:
            log.error("the host's addresses cannot be read: %s", error)
            self._host_changed_at = time.monotonic() + RETRY_FIRST


def _rested(changed: float | None, now: float) -> bool:
    return changed is not None and now >= changed + NOTICE_REST


def _sentence(finding: Finding) -> str:
    where = f"{finding.key or 'host'}{f' (revision {finding.revision})' if finding.revision else ''}"
    return f"{where}: {f'{finding.path}: ' if finding.path else ''}{finding.message} [{finding.reason}]"
