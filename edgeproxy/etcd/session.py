"""One connection's life: log in, prove or list, follow, until something ends it.

    login ──▶ is the history ours? ──yes──▶ watch from L + 1 ──┬─ read: the only task that changes the ledger
                    │ no, gone, first time          ▲          ├─ probe: a linearizable read now and then
                    └──▶ list ──▶ accept ───────────┘          └─ audit: a full list now and then

A process that begins with the ledger of the one before it also asks whether the history is ours, and then
for what was written since: its consumer must not act on a state older than the one in the kernel.

Whatever ends it is raised as a StoreError; `store` decides what comes next. An error never
changes what was delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

from edgeproxy.etcd import messages as wire
from edgeproxy.etcd.backoff import Backoff
from edgeproxy.etcd.changes import Batch, Cause, Change, KeyValue, Snapshot
from edgeproxy.etcd.channel import Stream
from edgeproxy.etcd.client import Connection, Header, Page
from edgeproxy.etcd.delivery import Delivery
from edgeproxy.etcd.errors import (
    AuditDiffered,
    HistoryCompacted,
    HistoryReplaced,
    Refused,
    Transient,
    Unreachable,
)
from edgeproxy.etcd.health import StoreHealth
from edgeproxy.etcd.ledger import Audit, Difference, Ledger, proves
from edgeproxy.etcd.progress import Confirmed, Created, Progress
from edgeproxy.etcd.settings import EtcdSettings, Timing

log = logging.getLogger(__name__)

LIST_ATTEMPTS = 3
OF_ONE_HISTORY = frozenset({Cause.COMPACTED, Cause.AUDIT})
"""Causes of a list that continues the history we follow: what differs is all that is news. In any other,
a record that reads the same may be another one (its create revision is not in the ledger)."""
KEYS_SHOWN = 5


@dataclass(slots=True)
class Following:
    """What outlives a connection: what was delivered, and what is due.

    relist: why the next connection must list, None where it may try to resume.
    begun: whether anything was delivered.
    audit_due: on the injected clock; infinite where audits are off.
    """

    ledger: Ledger
    delivery: Delivery
    health: StoreHealth
    backoff: Backoff
    clock: Callable[[], float]
    random: Callable[[], float]
    relist: Cause | None
    audit_due: float
    begun: bool = False


class Session:
    """Follows the store over one connection."""

    def __init__(
        self, connection: Connection, following: Following, settings: EtcdSettings, timing: Timing
    ) -> None:
        self._connection = connection
        self._following = following
        self._ledger = following.ledger
        self._health = following.health
        self._settings = settings
        self._timing = timing
        self._where = str(connection.endpoint)
        self._proof: Header | None = None

    async def run(self) -> None:
        """Follow until an error ends it; never returns without one."""
        await self._connection.login()
        cause = self._following.relist or await self._why_list()
        if not self._following.begun and (cause is not None or not await self._catch_up()):
            cause = Cause.START
        if cause is not None:
            await self._list(cause)
        stream = await self._connection.watch(self._settings.prefix, self._ledger.revision + 1)
        progress = Progress(self._ledger.revision, self._ledger.cluster_id, self._where)
        try:
            await self._await_creation(stream, progress)
            self._following_now(cause)
            await _first_failure(self._read(stream, progress), self._probe(), self._audit())
        finally:
            stream.cancel()

    async def _why_list(self) -> Cause | None:
        """None where the store's history is proven to be the one we follow."""
        probes = self._ledger.probes()
        if not probes:
            return Cause.UNPROVEN
        try:
            for probe in probes:
                reading = await self._connection.get(probe.key, probe.revision)
                self._confirm(reading.header, probe.revision)
                self._proof = reading.header
                if not proves(probe, reading.record):
                    key = probe.key.decode(errors="replace")
                    raise HistoryReplaced(
                        f"etcd at {self._where}: {key} was another at revision {probe.revision}"
                    )
        except HistoryCompacted as error:
            log.info("%s; listing all records", error)
            return Cause.COMPACTED
        except HistoryReplaced as error:
            log.warning("%s; the store was restored, wiped or exchanged: listing all records", error)
            return Cause.REPLACED
        return None

    def _confirm(self, header: Header, asked_at: int) -> None:
        """A linearizable answer: contact, and a look at whose it is."""
        if not self._ledger.agrees(header.cluster_id, header.revision, asked_at):
            raise HistoryReplaced(
                f"etcd at {self._where}: cluster {header.cluster_id:x} at revision {header.revision} cannot be "
                f"the one followed (cluster {self._ledger.cluster_id:x} up to revision {asked_at})"
            )
        self._health.confirmed_at = self._following.clock()

    async def _catch_up(self) -> bool:
        """Deliver what was written since the ledger of an earlier process; false if only a list can tell.

        A deletion leaves nothing that such a question could find, but it shows in the number of keys. The
        store reads every record to answer it, so it is not asked if its revision is still ours.
        """
        difference = Difference(self._ledger)
        if self._proof is not None and self._proof.revision == self._ledger.revision:
            self._accept(difference.puts(self._ledger.revision), self._proof)
            return True
        counts: list[int] = []

        def receive(page: Page) -> None:
            counts.append(page.count)
            difference.compare(page.records)

        since = self._ledger.revision + 1
        header = await self._connection.list_prefix(self._settings.prefix, receive, since)
        self._confirm(header, self._ledger.revision)
        if counts[0] != difference.keys_if_none_is_gone():
            log.info("records were deleted since the state on disk was written; listing all records")
            return False
        self._accept(difference.puts(header.revision), header)
        return True

    async def _list(self, cause: Cause) -> None:
        """A full list, after a random wait unless it is the first: thousands of hosts list at once."""
        self._following.relist = cause
        if cause is not Cause.START:
            await asyncio.sleep(self._following.random() * self._timing.herd)
        if cause in OF_ONE_HISTORY:
            difference = Difference(self._ledger)
            header = await self._pages(difference.begin, lambda page: difference.compare(page.records))
            self._confirm(header, self._ledger.revision)
            listed: Change = difference.batch(header.revision)
        else:
            records: list[KeyValue] = []
            header = await self._pages(records.clear, lambda page: records.extend(page.records))
            listed = Snapshot(header.revision, tuple(records), cause)
        self._accept(listed, header)
        self._health.relists[cause] += 1

    async def _pages(self, begin: Callable[[], None], receive: Callable[[Page], None]) -> Header:
        """A full list, begun again where the store is compacted meanwhile."""
        for _ in range(LIST_ATTEMPTS - 1):
            begin()
            with contextlib.suppress(HistoryCompacted):
                return await self._connection.list_prefix(self._settings.prefix, receive)
        begin()
        return await self._connection.list_prefix(self._settings.prefix, receive)

    def _accept(self, listed: Change, header: Header) -> None:
        """The one place where a listed state becomes the state.

        Here belongs distrust: an empty or much shrunken list should be confirmed before it counts. For
        now every list is believed.
        """
        match listed:
            case Snapshot():
                if listed.cause is Cause.REPLACED:
                    self._tell_replaced(header)
                self._ledger.replace(listed, header.cluster_id)
            case Batch():
                self._ledger.apply(listed)
        self._following.relist = None
        self._following.audit_due = self._next_audit()
        self._health.confirmed_at = self._following.clock()
        self._note_progress()
        if isinstance(listed, Snapshot) or listed.events or not self._following.begun:
            self._following.delivery.put(listed)
        self._following.begun = True

    def _tell_replaced(self, header: Header) -> None:
        log.warning(
            "etcd at %s: history replaced; was cluster %x revision %d, is cluster %x revision %d term %d",
            self._where,
            self._ledger.cluster_id,
            self._ledger.revision,
            header.cluster_id,
            header.revision,
            header.raft_term,
        )

    async def _await_creation(self, stream: Stream[wire.WatchResponse], progress: Progress) -> None:
        try:
            async with asyncio.timeout(self._settings.dial_timeout):
                while not isinstance(progress.receive(await stream.read()), Created):
                    pass
        except TimeoutError:
            raise Unreachable(f"etcd at {self._where}: no answer to the watch in time") from None

    def _following_now(self, cause: Cause | None) -> None:
        if cause is None:
            self._health.resumes += 1
        self._health.endpoint = self._where
        self._health.problem = None
        self._health.operator_needed = False
        self._health.stream_at = self._following.clock()
        how = "resumed" if cause is None else f"listed {len(self._ledger)} keys: {cause}"
        log.info("following etcd at %s from revision %d (%s)", self._where, self._ledger.revision, how)

    async def _read(self, stream: Stream[wire.WatchResponse], progress: Progress) -> None:
        """Fold in what the stream says. Nothing here waits for the consumer."""
        while True:
            answer = await stream.read()
            dropped = progress.dropped
            said = progress.receive(answer)
            self._health.stream_at = self._following.clock()
            self._health.dropped_events += progress.dropped - dropped
            match said:
                case Batch():
                    self._ledger.apply(said)
                    self._following.delivery.put(said)
                    self._health.coalesced = self._following.delivery.coalesced
                case Confirmed():
                    self._ledger.advance(said.revision)
                case _:
                    continue
            self._following.backoff.succeeded()
            self._note_progress()

    def _note_progress(self) -> None:
        self._health.revision = self._ledger.revision
        self._health.keys = len(self._ledger)

    async def _probe(self) -> None:
        """Linearizable reads: a stream can stay open and mute on a member that lost the others.

        One key, not a range: etcd counts the whole range for every answer.
        """
        failed = False
        while True:
            wait = self._timing.probe_again if failed else self._timing.probe
            await asyncio.sleep(wait * (0.5 + self._following.random()))
            asked_at, deadline = self._ledger.revision, self._timing.probe_deadline
            try:
                reading = await self._connection.get(self._settings.prefix, deadline=deadline)
            except Transient:
                if failed:
                    raise
                failed = True
                continue
            failed = False
            self._confirm(reading.header, asked_at)
            self._following.backoff.succeeded()

    async def _audit(self) -> None:
        """The net under a server that loses events: compare everything from time to time."""
        while True:
            await asyncio.sleep(max(0.0, self._following.audit_due - self._following.clock()))
            try:
                await self._audit_once()
            except (Transient, HistoryCompacted) as error:
                # The watch and the probes judge the connection; an audit only may be late.
                log.info("audit of the records not finished, trying again: %s", error)
                self._following.audit_due = self._following.clock() + self._timing.audit_again
            else:
                self._following.audit_due = self._next_audit()

    async def _audit_once(self) -> None:
        asked_at = self._ledger.revision
        audit = Audit(self._ledger)
        try:
            header = await self._connection.list_prefix(self._settings.prefix, partial(_compare, audit))
            self._confirm(header, asked_at)
            if audit.differences():
                await asyncio.sleep(self._timing.audit_grace)
            differences = audit.differences()
        finally:
            audit.close()
        self._health.audits += 1
        if differences:
            self._health.audit_differences += len(differences)
            shown = ", ".join(key.decode(errors="replace") for key in differences[:KEYS_SHOWN])
            raise AuditDiffered(
                f"etcd at {self._where}: the audit found {len(differences)} keys that differ from what the "
                f"watch has told ({shown}); listing all records"
            )

    def _next_audit(self) -> float:
        if self._settings.audit <= 0:
            return float("inf")
        # A phase of its own for every host, around the configured mean.
        return self._following.clock() + self._settings.audit * (0.67 + 0.66 * self._following.random())


def _compare(audit: Audit, page: Page) -> None:
    audit.compare(page.records)


async def _first_failure(*parts: Coroutine[None, None, None]) -> None:
    """Run all until one raises; end the others, then raise that."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [result for task, result in zip(tasks, results, strict=True) if task in done]
    # Of several at once, one that needs an operator says more than a broken stream.
    errors.sort(key=lambda error: not isinstance(error, Refused))
    if isinstance(errors[0], BaseException):
        raise errors[0]
