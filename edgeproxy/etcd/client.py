"""One connection: login, reads, writes and watches in etcd's terms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import msgspec

from edgeproxy.etcd import messages as wire
from edgeproxy.etcd.changes import KeyValue
from edgeproxy.etcd.channel import Channel, Reply, Stream
from edgeproxy.etcd.endpoint import Endpoint
from edgeproxy.etcd.errors import LoginRefused, ReplyTooLarge, TokenRefused
from edgeproxy.etcd.settings import EtcdSettings, Timing

log = logging.getLogger(__name__)

RECORDS_AT_ONCE = 1000
"""Taken from a page of the store between two turns of the event loop: some milliseconds."""


class Header(msgspec.Struct, frozen=True):
    """Who answered, and when in the store's history. 0 = not told (a grpc-proxy does not)."""

    cluster_id: int
    member_id: int
    revision: int
    raft_term: int


class Page(msgspec.Struct, frozen=True):
    """Some records of a list.

    count: the keys from the start of this page or the one before to the end of the list, those that a filter
        leaves out included.
    """

    header: Header
    records: list[KeyValue]
    count: int


class Reading(msgspec.Struct, frozen=True):
    """One key as read, None where it does not exist."""

    header: Header
    record: KeyValue | None


class Status(msgspec.Struct, frozen=True):
    """What a member says of itself; `leader` 0 means it knows none."""

    header: Header
    version: str
    leader: int


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix`; `\\0` ("no end") where there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


class Connection:
    """A channel and its login. Every method raises StoreError; see `errors`."""

    def __init__(self, endpoint: Endpoint, settings: EtcdSettings, timing: Timing) -> None:
        self.endpoint = endpoint
        self._settings = settings
        self._timing = timing
        self._channel = Channel(endpoint, settings, timing)
        self._token: str | None = None

    async def close(self) -> None:
        """End all calls and streams of this connection."""
        await self._channel.close()

    async def login(self) -> None:
        """Get a token if a user is configured; nothing to do otherwise."""
        name = self._settings.username
        if name is None:
            return
        request = wire.AuthenticateRequest(name=name, password=self._settings.password or "")
        self._token = None
        try:
            answer = await self._channel.unary(
                "/etcdserverpb.Auth/Authenticate",
                request,
                wire.AuthenticateResponse,
                self._metadata(),
                self._settings.dial_timeout,
            )
        except LoginRefused as error:
            if "not enabled" not in str(error):
                raise
            log.warning("etcd at %s has authentication off; user %s goes without", self.endpoint, name)
        else:
            self._token = answer.token

    async def status(self) -> Status:
        """The member's own view; its revision may lag behind the cluster's."""
        request = wire.StatusRequest()
        answer = await self._call("/etcdserverpb.Maintenance/Status", request, wire.StatusResponse)
        return Status(header=_header(answer.header), version=answer.version, leader=answer.leader)

    async def get(self, key: bytes, revision: int = 0, deadline: float | None = None) -> Reading:
        """One key, linearizable, as of `revision` (0 = now).

        Raises HistoryCompacted for a revision that is gone, HistoryReplaced for one still to come.
        """
        request = wire.RangeRequest(key=key, revision=revision)
        answer = await self._call("/etcdserverpb.KV/Range", request, wire.RangeResponse, deadline)
        records = _records(answer.kvs)
        return Reading(header=_header(answer.header), record=records[0] if records else None)

    async def list_prefix(self, prefix: bytes, receive: Callable[[Page], None], since: int = 0) -> Header:
        """Every key below `prefix` at one revision, some at a time into `receive`.

        since: only keys that were last written at this revision or later.
        The revision is that of the first, linearizable page; its header is returned. Raises
        HistoryCompacted if the revision is compacted meanwhile: what was received is then void.
        """
        start, limit, first = prefix, self._timing.page_size, None
        while True:
            revision = first.revision if first else 0
            try:
                page = await self._page(start, prefix_end(prefix), revision, limit, since)
            except ReplyTooLarge:
                if limit == 1:
                    raise
                limit = max(1, limit // 8)
                continue
            header = _header(page.header)
            first = first or header
            for at in range(0, max(len(page.kvs), 1), RECORDS_AT_ONCE):
                receive(Page(header, _records(page.kvs[at : at + RECORDS_AT_ONCE]), page.count))
                await asyncio.sleep(0)
            if not page.more or not page.kvs:
                return first
            start = page.kvs[-1].key + b"\0"

    async def _page(
        self, start: bytes, end: bytes, revision: int, limit: int, since: int
    ) -> wire.RangeResponse:
        request = wire.RangeRequest(
            key=start, range_end=end, limit=limit, revision=revision, min_mod_revision=since
        )
        deadline = self._timing.page_deadline
        return await self._call("/etcdserverpb.KV/Range", request, wire.RangeResponse, deadline)

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> int:
        """Write one key; the revision it got."""
        request = wire.PutRequest(key=key, value=value, lease=lease)
        answer = await self._call("/etcdserverpb.KV/Put", request, wire.PutResponse)
        return answer.header.revision

    async def delete(self, key: bytes, range_end: bytes = b"") -> int:
        """Delete one key, or all from `key` up to `range_end`; the revision after it."""
        request = wire.DeleteRangeRequest(key=key, range_end=range_end)
        answer = await self._call("/etcdserverpb.KV/DeleteRange", request, wire.DeleteRangeResponse)
        return answer.header.revision

    async def txn(
        self, operations: Iterable[wire.RequestOp], compare: Iterable[wire.Compare] = ()
    ) -> tuple[bool, int]:
        """All operations in one revision if every comparison holds; (done, revision)."""
        request = wire.TxnRequest(compare=compare, success=operations)
        answer = await self._call("/etcdserverpb.KV/Txn", request, wire.TxnResponse)
        return answer.succeeded, answer.header.revision

    async def compact(self, revision: int) -> None:
        """Forget all history before `revision`."""
        request = wire.CompactionRequest(revision=revision, physical=True)
        await self._call("/etcdserverpb.KV/Compact", request, wire.CompactionResponse)

    async def watch(self, prefix: bytes, start: int) -> Stream[wire.WatchResponse]:
        """Open a watch of everything below `prefix` from revision `start` on; read `Stream.read`.

        The server's acceptance is a message like any other: see `progress`.
        """
        request = wire.WatchCreateRequest(
            key=prefix,
            range_end=prefix_end(prefix),
            start_revision=start,
            progress_notify=True,
            fragment=True,
        )
        stream = self._channel.stream("/etcdserverpb.Watch/Watch", wire.WatchResponse, self._metadata())
        await stream.write(wire.WatchRequest(create_request=request))
        return stream

    async def _call(
        self, method: str, request: wire.Message, reply: type[Reply], deadline: float | None = None
    ) -> Reply:
        """One call; a token that has expired is renewed once."""
        seconds = self._settings.dial_timeout if deadline is None else deadline
        try:
            return await self._channel.unary(method, request, reply, self._metadata(), seconds)
        except TokenRefused:
            if self._settings.username is None:
                raise
        await self.login()
        return await self._channel.unary(method, request, reply, self._metadata(), seconds)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        # hasleader: a member without a leader must refuse or end the call, not serve old data.
        leader = ("hasleader", "true")
        return (leader,) if self._token is None else (leader, ("token", self._token))


def _header(header: wire.ResponseHeader) -> Header:
    return Header(
        cluster_id=header.cluster_id,
        member_id=header.member_id,
        revision=header.revision,
        raft_term=header.raft_term,
    )


def _records(kvs: Iterable[wire.KeyValue]) -> list[KeyValue]:
    return [
        KeyValue(key=kv.key, value=kv.value, create_revision=kv.create_revision, mod_revision=kv.mod_revision)
        for kv in kvs
    ]
