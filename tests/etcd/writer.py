"""A publisher: 50 puts and deletes a second, over its own connection, for as long as wanted."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Self

from edgeproxy.etcd.client import Connection
from edgeproxy.etcd.errors import StoreError

from .server import EtcdServer


class Writer:
    """Writes to whichever of the members answers. `written` holds the acknowledged (key, revision)."""

    def __init__(self, *servers: EtcdServer, rate: float = 50.0, keys: int = 40, size: int = 20) -> None:
        self._servers = servers
        self._pause = 1.0 / rate
        self._keys = keys
        self._size = size
        self._random = random.Random(7)
        self.written: list[tuple[bytes, int]] = []
        self.attempts = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        turn = 0
        while True:
            server = self._servers[turn % len(self._servers)]
            connection = server.connection(dial_timeout=2.0)
            try:
                await connection.login()
                while True:
                    await self._write(connection)
                    await asyncio.sleep(self._pause)
            except StoreError:
                turn += 1
                await asyncio.sleep(0.05)
            finally:
                await connection.close()

    async def _write(self, connection: Connection) -> None:
        self.attempts += 1
        key = b"/services/s%d" % self._random.randrange(self._keys)
        if self._random.random() < 0.2:
            # A delete of a missing key makes no revision, so nothing is recorded for deletes.
            await connection.delete(key)
        else:
            value = b"%d " % self.attempts + b"x" * self._size
            self.written.append((key, await connection.put(key, value)))
