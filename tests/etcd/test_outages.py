"""The store goes away and comes back: nothing missed, nothing doubled, nothing burnt."""

from __future__ import annotations

import resource
import signal
import time

from edgeproxy.etcd.changes import Cause
from edgeproxy.etcd.settings import EtcdSettings, Timing

from .conftest import Starter
from .faults import Fault, FaultProxy
from .follower import Follower
from .server import EtcdServer, until
from .writer import Writer


def missed(follower: Follower, writer: Writer) -> set[tuple[bytes, int]]:
    """Acknowledged writes after the first snapshot that were never delivered."""
    first = follower.snapshots[0].revision
    return {(key, revision) for key, revision in writer.written if revision > first} - set(follower.events)


async def settled(follower: Follower, server: EtcdServer) -> None:
    """Wait until the follower holds what etcd holds."""
    truth = server.truth()
    await until(
        lambda: follower.following() and follower.state == truth, 20, "the follower's state is etcd's"
    )


async def test_kill_and_restart_under_load_misses_and_doubles_nothing(server: EtcdServer) -> None:
    async with Follower(server.settings()) as follower:
        async with Writer(server) as writer:
            for _ in range(2):
                before = len(writer.written)
                await until(lambda n=before: len(writer.written) > n + 50, 10, "fifty more puts")
                server.kill()
                attempts = follower.health.connects
                await until(lambda n=attempts: follower.health.connects > n + 3, 10, "attempts to connect")
                assert follower.health.endpoint is None
                assert "connection was refused" in follower.health.problem
                server.start()
                await until(follower.following, 20, "the stream is followed again")
            before = len(writer.written)
            await until(lambda: len(writer.written) > before + 50, 10, "fifty more puts")
        await settled(follower, server)
        assert not missed(follower, writer)
        # The follower itself fails on a doubled or reordered revision.
        assert follower.health.resumes == 2
        assert [snapshot.cause for snapshot in follower.snapshots] == [Cause.START]
        assert follower.health.problem is None


async def test_an_outage_costs_no_cpu_and_changes_nothing(server: EtcdServer) -> None:
    timing = Timing(backoff_first=0.1, backoff_most=0.8)
    async with Follower(server.settings(), timing) as follower:
        async with Writer(server) as writer:
            await until(lambda: len(writer.written) > 20, 10, "some puts")
        await settled(follower, server)
        state, delivered = dict(follower.state), follower.batches
        server.kill()
        await until(lambda: follower.health.endpoint is None, 5, "the loss is noticed")
        used, began, attempts = _cpu(), time.monotonic(), follower.health.connects
        await until(lambda: follower.health.connects > attempts + 6, 30, "attempts to connect")
        # `until` itself polls a hundred times a second; one core would be 1.0.
        assert (_cpu() - used) / (time.monotonic() - began) < 0.1
        assert (follower.state, follower.batches, len(follower.snapshots)) == (state, delivered, 1)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def test_a_hung_member_is_found_and_another_endpoint_taken(cluster: Starter) -> None:
    servers = await cluster(3)
    # The product's own times: pings must find it, the linearizable probe is put out of the way.
    timing = Timing(probe=600)
    settings = EtcdSettings(endpoints=tuple(server.url for server in servers))
    servers[0].etcdctl("put", "/services/web", "1")
    async with Follower(settings, timing) as follower:
        await until(follower.following, 10, "following")
        hung = next(server for server in servers if server.url == follower.health.endpoint)
        others = [server for server in servers if server is not hung]
        hung.stop()
        began = time.monotonic()
        try:
            async with Writer(*others) as writer:
                await until(lambda: follower.health.endpoint != hung.url, 25, "the hung member is noticed")
                assert time.monotonic() - began < 16.5
                assert "stopped answering pings" in follower.health.problem
                await until(follower.following, 20, "another member is followed")
                before = len(writer.written)
                await until(lambda: len(writer.written) > before + 5, 10, "some more puts")
            await settled(follower, others[0])
        finally:
            hung.resume()
        assert follower.health.resumes >= 1
        assert len(follower.snapshots) == 1
        assert not missed(follower, writer)


async def test_a_stalled_network_is_left_for_another_endpoint(server: EtcdServer, faulty: FaultProxy) -> None:
    # Pings out of the way: here the linearizable reads must find it.
    timing = Timing(keepalive=600, probe=0.5, probe_again=0.1, probe_deadline=0.5, backoff_first=0.05)
    settings = server.settings(endpoints=(faulty.url, server.url))
    # Equal chances keep the endpoints in their order.
    async with Follower(settings, timing, chance=lambda: 0.5) as follower:
        await until(lambda: follower.health.endpoint == faulty.url, 10, "following")
        await faulty.set(Fault.STALL)
        await until(lambda: follower.health.endpoint == server.url, 10, "the other endpoint is followed")
        await faulty.set(Fault.NONE)


async def test_sigterm_ends_the_stream_and_is_resumed(server: EtcdServer) -> None:
    async with Follower(server.settings()) as follower:
        await until(follower.following, 10, "following")
        server.kill(signal.SIGTERM)
        await until(lambda: follower.health.endpoint is None, 10, "the end is noticed")
        server.start()
        await server.ready()
        server.etcdctl("put", "/services/web", "1")
        await until(lambda: follower.state == {b"/services/web": b"1"}, 20, "the put arrives")


async def test_compaction_during_an_outage_lists_once(server: EtcdServer, faulty: FaultProxy) -> None:
    async with Follower(server.settings(endpoints=(faulty.url,))) as follower:
        async with Writer(server) as writer:
            await until(lambda: follower.following() and len(writer.written) > 20, 20, "some puts")
            await faulty.set(Fault.REFUSE)
            faulty.reset()
            before = len(writer.written)
            await until(lambda: len(writer.written) > before + 20, 10, "puts while away")
        connection = server.connection()
        await connection.compact(writer.written[-1][1])
        await connection.close()
        seen = follower.revision
        await faulty.set(Fault.NONE)
        await settled(follower, server)
        assert [snapshot.cause for snapshot in follower.snapshots] == [Cause.START]
        assert follower.health.relists[Cause.COMPACTED] == 1
        # Of what was listed only what differs is told.
        (gap,) = follower.gaps
        assert all(event.mod_revision > seen for event in gap.events)


async def test_compaction_of_what_was_seen_needs_no_list(faulty: FaultProxy, server: EtcdServer) -> None:
    """The last put is compacted away, but the quiet prefix has been confirmed beyond it."""
    server.kill()
    server.flags = ["--experimental-watch-progress-notify-interval", "200ms"]
    server.start()
    await server.ready()
    async with Follower(server.settings(endpoints=(faulty.url,))) as follower:
        await until(follower.following, 10, "following")
        server.etcdctl("put", "/services/web", "1")
        server.etcdctl("put", "/services/gone", "1")
        server.etcdctl("del", "/services/gone")
        connection = server.connection()
        revision = [await connection.put(b"/elsewhere", b"%d" % number) for number in range(50)][-1]
        await until(lambda: follower.health.revision == revision, 10, "progress is confirmed")
        assert follower.revision < revision
        await connection.compact(revision)
        await connection.close()
        faulty.reset()
        await until(lambda: follower.health.resumes == 1, 10, "the watch is resumed")
        server.etcdctl("put", "/services/web", "2")
        await until(lambda: follower.state == {b"/services/web": b"2"}, 10, "the put arrives")
        assert len(follower.snapshots) == 1
