"""A TCP proxy that misbehaves on demand, between a client and one etcd member."""

from __future__ import annotations

import asyncio
import enum

from .server import free_ports


class Fault(enum.Enum):
    """What happens to connections, old and new."""

    NONE = enum.auto()
    STALL = enum.auto()  # nothing is forwarded any more, connections stay open and are accepted
    REFUSE = enum.auto()  # new connections are refused
    TRUNCATE = enum.auto()  # the next chunk from the server is cut in half, then the connection ends


class FaultProxy:
    """Listens on a port of its own, forwards to `port`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = free_ports(1)[0]
        self.fault = Fault.NONE
        self.connections = 0
        self._flow = asyncio.Event()
        self._flow.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)

    async def set(self, fault: Fault) -> None:
        """Change the behaviour; REFUSE closes the listener, anything else opens it again."""
        self.fault = fault
        if fault is Fault.REFUSE and self._server is not None:
            self._server.close()
            self._server = None
        if fault is not Fault.REFUSE and self._server is None:
            await self.start()
        if fault is Fault.STALL:
            self._flow.clear()
        else:
            self._flow.set()

    def reset(self) -> None:
        """Cut every open connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._writers.add(writer)
        try:
            await self._flow.wait()
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(up_writer)
            try:
                await asyncio.wait(
                    [
                        asyncio.ensure_future(self._pump(reader, up_writer, False)),
                        asyncio.ensure_future(self._pump(up_reader, writer, True)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                up_writer.transport.abort()
                self._writers.discard(up_writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, down: bool) -> None:
        try:
            while data := await reader.read(65536):
                await self._flow.wait()
                if down and self.fault is Fault.TRUNCATE:
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            return
