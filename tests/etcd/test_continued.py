"""A process that goes on where an earlier one ended: what was written in between, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeproxy.etcd.changes import Cause
from edgeproxy.etcd.client import Connection, Header, Page
from edgeproxy.etcd.settings import Timing

from .follower import QUICK, Follower
from .server import EtcdServer, until
from .test_outages import settled
from .writer import Writer


async def ended(server: EtcdServer) -> Follower:
    """A follower that has seen all there is, and has ended."""
    async with Follower(server.settings()) as follower:
        await settled(follower, server)
    return follower


async def test_what_was_written_in_between_is_told_and_nothing_is_listed(server: EtcdServer) -> None:
    for name in ("web", "same"):
        server.etcdctl("put", f"/services/{name}", "1")
    before = await ended(server)
    server.etcdctl("put", "/services/web", "2")
    server.etcdctl("put", "/services/new", "1")
    server.etcdctl("put", "/elsewhere", "1")
    async with Follower(server.settings(), before=before) as follower:
        await settled(follower, server)
        (gap,) = follower.gaps
        assert [(event.key, event.mod_revision) for event in gap.events] == [
            (b"/services/web", 4),
            (b"/services/new", 5),
        ]
        assert gap.revision == 6
        assert not any(follower.health.relists.values())
        server.etcdctl("put", "/services/web", "3")
        await settled(follower, server)
        assert not follower.snapshots


@pytest.mark.parametrize(("elsewhere", "revision"), [(True, 3), (False, 2)])
async def test_where_nothing_was_written_the_present_revision_is_told(
    server: EtcdServer, elsewhere: bool, revision: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.etcdctl("put", "/services/web", "1")
    before = await ended(server)
    if elsewhere:
        server.etcdctl("put", "/elsewhere", "1")
    lists: list[bytes] = []
    list_prefix = Connection.list_prefix

    async def counted(
        self: Connection, prefix: bytes, receive: Callable[[Page], None], since: int = 0
    ) -> Header:
        lists.append(prefix)
        return await list_prefix(self, prefix, receive, since)

    monkeypatch.setattr(Connection, "list_prefix", counted)
    async with Follower(server.settings(), before=before) as follower:
        await until(lambda: bool(follower.gaps), 10, "told")
        assert [(gap.revision, gap.events) for gap in follower.gaps] == [(revision, ())]
        assert bool(lists) == elsewhere, "the store's revision alone says that nothing was written"
        server.etcdctl("put", "/services/web", "2")
        await settled(follower, server)


async def test_a_deletion_in_between_makes_a_list(server: EtcdServer) -> None:
    for name in ("web", "gone", "again"):
        server.etcdctl("put", f"/services/{name}", "1")
    before = await ended(server)
    server.etcdctl("del", "/services/gone")
    server.etcdctl("del", "/services/again")
    server.etcdctl("put", "/services/again", "1")
    async with Follower(server.settings(), before=before) as follower:
        await settled(follower, server)
        assert [snapshot.cause for snapshot in follower.snapshots] == [Cause.START]
        assert not follower.gaps


async def test_a_compaction_in_between_makes_a_list_without_a_wait(server: EtcdServer) -> None:
    server.etcdctl("put", "/services/web", "1")
    before = await ended(server)
    server.etcdctl("put", "/services/web", "2")
    server.etcdctl("put", "/services/web", "3")
    server.etcdctl("compact", "4")
    patient = Timing(**{**{f: getattr(QUICK, f) for f in QUICK.__struct_fields__}, "herd": 3600.0})
    async with Follower(server.settings(), patient, before=before) as follower:
        await settled(follower, server)
        assert [snapshot.cause for snapshot in follower.snapshots] == [Cause.START]


async def test_another_history_makes_a_list(server: EtcdServer, folder: Path) -> None:
    server.etcdctl("put", "/services/kept", "1")
    server.save(folder / "backup")
    server.etcdctl("put", "/services/lost", "1")
    before = await ended(server)
    server.kill()
    server.restore(folder / "backup")
    server.start()
    await server.ready()
    for number in range(5):
        server.etcdctl("put", f"/services/new{number}", "2")
    async with Follower(server.settings(), before=before) as follower:
        await settled(follower, server)
        assert b"/services/lost" not in follower.state
        assert [snapshot.cause for snapshot in follower.snapshots] == [Cause.START]


async def test_one_after_the_other_under_load_they_miss_and_double_nothing(server: EtcdServer) -> None:
    async with Writer(server, rate=300) as writer:
        follower = await ended_under_load(server, None)
        for _ in range(8):
            before = len(writer.written)
            await until(lambda n=before: len(writer.written) > n + 20, 10, "puts in between")
            follower = await ended_under_load(server, follower)
    async with Follower(server.settings(), before=follower) as last:
        await settled(last, server)


async def ended_under_load(server: EtcdServer, before: Follower | None) -> Follower:
    """A follower that has seen something of a store that is being written to, and has ended."""
    async with Follower(server.settings(), before=before) as follower:
        await until(lambda: follower.batches > 20, 20, "some batches")
        await until(lambda: follower.store.ledger() is not None, 10, "everything taken")
    if follower.store.ledger() is None:
        for change in follower.store.changes.drain():
            follower._fold(change)
    return follower
