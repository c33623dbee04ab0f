"""Three members: one down, the leader killed, the majority lost."""

from __future__ import annotations

import time

from edgeproxy.etcd.settings import EtcdSettings, Timing

from .conftest import Starter
from .follower import QUICK, Follower
from .server import EtcdServer, until
from .test_outages import missed, settled
from .writer import Writer


def all_of(servers: list[EtcdServer]) -> EtcdSettings:
    return EtcdSettings(endpoints=tuple(server.url for server in servers))


async def leader(servers: list[EtcdServer]) -> EtcdServer:
    for server in servers:
        connection = server.connection()
        status = await connection.status()
        await connection.close()
        if status.leader == status.header.member_id:
            return server
    raise AssertionError("no member leads")


async def test_member_down_and_leader_killed_lose_nothing(cluster: Starter) -> None:
    servers = await cluster(3)
    lead = await leader(servers)
    async with Follower(all_of(servers)) as follower:
        await until(follower.following, 20, "following")
        async with Writer(*servers) as writer:
            await until(lambda: len(writer.written) > 30, 20, "some puts")
            followed = next(server for server in servers if server.url == follower.health.endpoint)
            for victim in (followed, lead):
                if victim.process is None:
                    continue
                victim.kill()
                before = len(writer.written)
                await until(lambda n=before: len(writer.written) > n + 30, 20, "puts with a member down")
                await until(follower.following, 20, "following without that member")
                assert follower.health.endpoint != victim.url
                victim.start()
                await victim.ready()
        await settled(follower, servers[0])
        assert not missed(follower, writer)
        assert len(follower.snapshots) == 1
        assert follower.health.resumes >= 1


async def test_a_member_without_leader_is_left_and_says_so(cluster: Starter) -> None:
    servers = await cluster(3)
    survivor, *others = servers
    servers[0].etcdctl("put", "/services/web", "1")
    # Reads out of the way: the stream itself must end, because it asks for a leader.
    timing = Timing(probe=600, backoff_first=0.1, backoff_most=0.5, herd=0.05)
    async with Follower(survivor.settings(dial_timeout=1.0), timing) as follower:
        await settled(follower, survivor)
        for other in others:
            other.stop()
        began = time.monotonic()
        try:
            await until(lambda: follower.health.endpoint is None, 15, "the stream without a leader ends")
            assert "no leader" in str(follower.health.problem)
            assert time.monotonic() - began < 12
            connects = follower.health.connects
            await until(lambda: follower.health.connects > connects + 2, 15, "further attempts")
            assert follower.health.endpoint is None
            assert len(follower.snapshots) == 1
            assert follower.state == {b"/services/web": b"1"}
        finally:
            for other in others:
                other.resume()
        await until(follower.following, 20, "following after the majority is back")
        servers[1].etcdctl("put", "/services/web", "2")
        await settled(follower, survivor)
        assert len(follower.snapshots) == 1


async def test_a_dead_first_endpoint_costs_no_time(cluster: Starter) -> None:
    servers = await cluster(1)
    settings = servers[0].settings(endpoints=("http://127.0.0.1:1", servers[0].url))
    began = time.monotonic()
    async with Follower(settings, QUICK, chance=lambda: 0.5) as follower:
        await until(follower.following, 5, "following at the second endpoint")
        assert time.monotonic() - began < 2
        assert follower.health.connects == 2
