"""Many store clients in one process: what a fleet of hosts is to etcd.

    python -m tests.bench.watchers ENDPOINT COUNT

Prints `ready` when all follow, and after a value `end` the delays of all deliveries in seconds as JSON.
A value is the moment it was put, on the monotonic clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec

from edgeproxy.etcd.changes import Batch
from edgeproxy.etcd.settings import EtcdSettings
from edgeproxy.etcd.store import Store

END = b"end"


async def _follow(store: Store, ready: asyncio.Semaphore, delays: list[float]) -> None:
    followed = asyncio.create_task(store.run())
    await store.changes.wait()
    store.changes.drain()
    ready.release()
    while True:
        await store.changes.wait()
        now = time.monotonic()
        for change in store.changes.drain():
            for event in change.events if isinstance(change, Batch) else ():
                if event.value == END:
                    followed.cancel()
                    return
                delays.append(now - float(event.value or b"nan"))


async def _run(endpoint: str, count: int) -> None:
    delays: list[float] = []
    ready = asyncio.Semaphore(0)
    stores = [Store(EtcdSettings(endpoints=(endpoint,))) for _ in range(count)]
    tasks = [asyncio.create_task(_follow(store, ready, delays)) for store in stores]
    for _ in tasks:
        await ready.acquire()
    print("ready", flush=True)
    await asyncio.gather(*tasks)
    sys.stdout.buffer.write(msgspec.json.encode(delays) + b"\n")


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], int(sys.argv[2])))
