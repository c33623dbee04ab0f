"""Histories that are not the one followed: restored, wiped; and what a watch stream must carry."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeproxy.etcd import messages as wire
from edgeproxy.etcd.changes import Cause, Compacted, KeyValue
from edgeproxy.etcd.errors import HistoryCompacted, HistoryReplaced, Unreachable
from edgeproxy.etcd.progress import Confirmed, Created, Progress
from edgeproxy.etcd.settings import EtcdSettings
from edgeproxy.etcd.store import Store

from .faults import Fault, FaultProxy
from .follower import QUICK, Follower
from .server import EtcdServer, until
from .test_outages import settled
from .writer import Writer

PAGE = 1000


async def fill(server: EtcdServer, count: int, value: bytes, prefix: bytes = b"/services/s") -> int:
    """Put `count` keys, a hundred to a transaction; the last revision."""
    connection = server.connection()
    revision = 0
    for start in range(0, count, 100):
        puts = [
            wire.RequestOp(request_put=wire.PutRequest(key=prefix + b"%06d" % number, value=value))
            for number in range(start, min(start + 100, count))
        ]
        _, revision = await connection.txn(puts)
    await connection.close()
    return revision


async def test_a_restored_snapshot_with_the_same_identity_is_detected(
    server: EtcdServer, folder: Path
) -> None:
    server.etcdctl("put", "/services/kept", "1")
    server.save(folder / "backup")
    async with Follower(server.settings()) as follower:
        for number in range(10):
            server.etcdctl("put", f"/services/lost{number}", "1")
        await settled(follower, server)
        last = follower.revision
        server.kill()
        server.restore(folder / "backup")
        server.start()
        # The new history overtakes the old one: numbers alone show nothing.
        writer = server.connection()
        await server.ready()
        for number in range(20):
            revision = await writer.put(b"/services/new%d" % number, b"2")
        await writer.close()
        assert revision > last
        await settled(follower, server)
        assert b"/services/lost3" not in follower.state
        assert follower.snapshots[-1].cause is Cause.REPLACED
        assert follower.health.problem is None


async def test_a_restore_that_overtakes_while_nobody_looks_is_detected(
    server: EtcdServer, folder: Path
) -> None:
    """As above, but the client meets the store only after the new history has overtaken the old one."""
    proxy = FaultProxy(server.client_port)
    await proxy.start()
    server.etcdctl("put", "/services/kept", "1")
    server.save(folder / "backup")
    try:
        async with Follower(server.settings(endpoints=(proxy.url,))) as follower:
            await fill(server, 300, b"old")
            await settled(follower, server)
            last = follower.revision
            await proxy.set(Fault.REFUSE)
            server.kill()
            server.restore(folder / "backup")
            server.start()
            await server.ready()
            # The same keys at the same revisions, with other values.
            revision = await fill(server, 300, b"new")
            revision = await fill(server, 100, b"more", b"/services/t")
            assert revision > last
            await proxy.set(Fault.NONE)
            await settled(follower, server)
            assert follower.health.relists[Cause.REPLACED] == 1
            assert follower.health.resumes == 0
    finally:
        await proxy.close()


async def test_a_wiped_store_is_told_as_replaced(server: EtcdServer) -> None:
    server.etcdctl("put", "/services/web", "1")
    async with Follower(server.settings()) as follower:
        await settled(follower, server)
        server.kill()
        server.wipe()
        server.start()
        await until(lambda: follower.health.relists[Cause.REPLACED] == 1, 20, "the wipe is seen")
        assert follower.snapshots[-1].records == ()
        server.etcdctl("put", "/services/web", "2")
        await settled(follower, server)


async def test_the_first_list_pages_at_one_revision(server: EtcdServer) -> None:
    await fill(server, 20_000, b"v" * 150)
    async with Follower(server.settings()) as follower:
        await until(lambda: follower.snapshots, 20, "the snapshot")
        snapshot = follower.snapshots[0]
        assert len(snapshot.records) == 20_000
        assert snapshot.cause is Cause.START
        keys = [record.key for record in snapshot.records]
        assert keys == sorted(set(keys))


async def test_pages_ignore_what_is_written_meanwhile(server: EtcdServer) -> None:
    await fill(server, 3000, b"old")
    connection = server.connection()
    connection._timing = connection._timing.__class__(page_size=PAGE)
    pages: list[int] = []
    records: dict[bytes, bytes] = {}

    def receive(page) -> None:  # type: ignore[no-untyped-def]
        pages.append(len(page.records))
        records.update((record.key, record.value) for record in page.records)
        server.etcdctl("put", "/services/s002999", "new")
        server.etcdctl("del", "/services/s001500")

    header = await connection.list_prefix(b"/services/", receive)
    await connection.close()
    assert pages == [PAGE, PAGE, PAGE]
    assert len(records) == 3000
    assert set(records.values()) == {b"old"}
    assert header.revision == 31


async def test_a_list_whose_revision_is_compacted_says_so(server: EtcdServer) -> None:
    await fill(server, 2000, b"old")
    connection = server.connection()
    connection._timing = connection._timing.__class__(page_size=PAGE)

    def compact(_: object) -> None:
        server.etcdctl("put", "/services/other", "1")
        server.etcdctl("compact", "22")

    with pytest.raises(HistoryCompacted):
        await connection.list_prefix(b"/services/", compact)
    await connection.close()


async def test_big_history_arrives_in_fragments(server: EtcdServer) -> None:
    """1,000 values of 10 kB: more than etcd sends in one message, and the joined batch is whole."""
    connection = server.connection()
    first = await connection.put(b"/services/first", b"1")
    for number in range(0, 1000, 100):
        await connection.txn(
            wire.RequestOp(
                request_put=wire.PutRequest(key=b"/services/%04d" % (number + n), value=b"x" * 10_000)
            )
            for n in range(100)
        )
    stream = await connection.watch(b"/services/", first + 1)
    progress = Progress(first, 0, server.url)
    messages, events = 0, []
    while len(events) < 1000:
        said = progress.receive(await stream.read())
        messages += 1
        if said is not None and not isinstance(said, Created | Confirmed):
            events += said.events
            per_revision = [event.mod_revision for event in said.events]
            assert all(per_revision.count(revision) == 100 for revision in set(per_revision))
    stream.cancel()
    await connection.close()
    assert messages > 4
    assert progress.revision == first + 10


async def test_only_timed_progress_moves_the_resume_point(server: EtcdServer) -> None:
    server.kill()
    server.flags = ["--experimental-watch-progress-notify-interval", "200ms"]
    server.start()
    await server.ready()
    connection = server.connection()
    first = await connection.put(b"/services/first", b"1")
    last = [await connection.put(b"/elsewhere", b"%d" % number) for number in range(20)][-1]
    stream = await connection.watch(b"/services/", first + 1)
    progress = Progress(first, 0, server.url)
    created = await stream.read()
    assert created.created
    assert created.header.revision == last
    assert isinstance(progress.receive(created), Created)
    assert progress.revision == first
    said = None
    while said is None:
        said = progress.receive(await stream.read())
    assert said == Confirmed(revision=last)
    assert progress.revision == last
    stream.cancel()
    await connection.close()


async def test_reading_a_record_back_revision_by_revision(server: EtcdServer) -> None:
    for value in ("good", "bad", "worse"):
        server.etcdctl("put", "/services/web", value)
    async with Follower(server.settings()) as follower:
        await until(follower.following, 10, "following")
        store, key = follower.store, b"/services/web"
        bad = await store.value_before(key, 4)
        assert bad == KeyValue(key=key, value=b"bad", create_revision=2, mod_revision=3)
        good = await store.value_before(key, bad.mod_revision)
        assert isinstance(good, KeyValue)
        assert good.value == b"good"
        assert await store.value_before(key, good.mod_revision) is None
        assert await store.value_before(key, 1) is None
        server.etcdctl("compact", "4")
        assert await store.value_before(key, 4) == Compacted(revision=3)
        with pytest.raises(HistoryReplaced):
            await store.value_before(key, 100)
        server.kill()
        await until(lambda: follower.health.endpoint is None, 5, "the loss is noticed")
        with pytest.raises(Unreachable, match=r"refused|reset|closed|not connected"):
            await store.value_before(key, 4)


async def test_an_audit_finds_what_the_stream_has_lost(server: EtcdServer) -> None:
    server.etcdctl("put", "/services/web", "1")
    server.etcdctl("put", "/services/old", "1")
    async with Follower(server.settings(audit=0.5)) as follower:
        await until(lambda: follower.health.audits >= 2, 10, "audits without a difference")
        assert follower.health.audit_differences == 0
        assert len(follower.snapshots) == 1
        # What a server bug would do: an event that never came.
        ledger = follower.store._following.ledger
        ledger._entries[b"/services/web"] += 1
        ledger._entries[b"/services/ghost"] = 1
        follower.state[b"/services/ghost"] = b"never was"
        del ledger._entries[b"/services/old"]
        await until(lambda: bool(follower.gaps), 10, "the state is listed again")
        assert follower.health.audit_differences == 3
        told = {event.key: event.value for event in follower.gaps[0].events}
        assert told == {b"/services/web": b"1", b"/services/old": b"1", b"/services/ghost": None}
        assert follower.health.relists[Cause.AUDIT] == 1
        audits = follower.health.audits
        await until(lambda: follower.health.audits > audits, 10, "an audit without a difference")
        assert follower.health.audit_differences == 3


async def test_audits_under_load_find_nothing(server: EtcdServer) -> None:
    async with Follower(server.settings(audit=0.05)) as follower, Writer(server, rate=500):
        await until(lambda: follower.health.audits >= 20, 30, "twenty audits")
        assert follower.health.audit_differences == 0
        assert len(follower.snapshots) == 1


async def test_nothing_is_delivered_while_no_endpoint_answers() -> None:
    settings = EtcdSettings(endpoints=("http://127.0.0.1:1", "http://[::1]:1"))
    store = Store(settings, QUICK)
    assert store.changes.drain() == []
    with pytest.raises(Unreachable):
        await store.value_before(b"/services/web", 5)
