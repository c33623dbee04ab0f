"""Everything at once, for a while; then the follower must hold what etcd holds."""

from __future__ import annotations

import asyncio
import os
import random
import time

from edgeproxy.etcd.changes import Cause

from .faults import Fault, FaultProxy
from .follower import Follower
from .server import EtcdServer, until
from .test_outages import missed
from .writer import Writer

# Longer, or another order of faults: EDGEPROXY_CHAOS_SECONDS=90 EDGEPROXY_CHAOS_SEED=5.
SECONDS = float(os.environ.get("EDGEPROXY_CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("EDGEPROXY_CHAOS_SEED", "1"))


async def disturb(server: EtcdServer, proxy: FaultProxy, writer: Writer, dice: random.Random) -> str:
    """One fault, and the way back from it."""
    fault = dice.choice(
        ["reset", "reset", "stall", "truncate", "refuse", "kill", "compact", "silent compact"]
    )
    match fault:
        case "reset":
            proxy.reset()
        case "stall":
            await proxy.set(Fault.STALL)
            await asyncio.sleep(dice.uniform(0.1, 4.0))
        case "truncate":
            await proxy.set(Fault.TRUNCATE)
            await asyncio.sleep(dice.uniform(0.1, 0.5))
        case "refuse":
            await proxy.set(Fault.REFUSE)
            proxy.reset()
            await asyncio.sleep(dice.uniform(0.1, 1.0))
        case "kill":
            server.kill()
            server.start()
            await server.ready()
        case "compact" if writer.written:
            server.etcdctl("compact", str(writer.written[-1][1]))
        case "silent compact":
            await proxy.set(Fault.REFUSE)
            proxy.reset()
            before = len(writer.written)
            await until(lambda: len(writer.written) > before + 10, 20, "puts while away")
            server.etcdctl("compact", str(writer.written[-1][1]))
    await proxy.set(Fault.NONE)
    return fault


async def test_chaos_ends_in_the_same_state(server: EtcdServer, faulty: FaultProxy) -> None:
    dice = random.Random(SEED)
    faults: list[str] = []
    async with Follower(server.settings(endpoints=(faulty.url,), audit=2.0, dial_timeout=1.0)) as follower:
        await until(follower.following, 10, "following")
        async with Writer(server, rate=200, size=200) as writer:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                faults.append(await disturb(server, faulty, writer, dice))
                await asyncio.sleep(dice.uniform(0.0, 1.0))
        truth = server.truth()
        told = f"state equal after {faults}: {follower.health}"
        await until(lambda: follower.following() and follower.state == truth, 30, told)
        health = follower.health
        assert health.audit_differences == 0
        assert health.relists[Cause.REPLACED] == 0, "no history was replaced"
        if health.relists[Cause.COMPACTED] == 0:
            assert not missed(follower, writer)
        assert health.connects > 3
        assert health.problem is None
