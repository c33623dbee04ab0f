"""Answers GET and HEAD over HTTP/1.1 on one address. The protocol is h11's; here are the sockets.

A request that is none of the protocol gets 400 and the connection is closed, as is one that says nothing
for a while. Bodies of requests are read and ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import h11

from edgeproxy.health import Answer

BAD_REQUEST = 400
METHOD_NOT_ALLOWED = 405
SILENCE = 60.0
"""Seconds after which a client that says nothing is cut off."""
_READ = 64 << 10

Respond = Callable[[str], Answer]
"""Path of a GET or HEAD request in, answer out."""


class HttpServer:
    """One listening socket, or one per address of a host name, and the connections made to it."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> int:
        """Listen; the port, which was chosen if 0 was given. host: "" for every local address.

        Raises:
            OSError: the address cannot be bound.
        """
        self._server = await asyncio.start_server(self._serve, host, port)
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    async def close(self) -> None:
        """Stop listening, and cut off whoever is connected."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        connected = tuple(self._connections)
        for task in connected:
            task.cancel()
        await asyncio.gather(*connected, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, TimeoutError):
                await _Conversation(reader, writer, self._respond).run()
        finally:
            self._connections.discard(task)
            writer.close()


class _Conversation:
    """The requests of one connection, one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, respond: Respond) -> None:
        self._reader = reader
        self._writer = writer
        self._respond = respond
        self._http = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        try:
            while (request := await self._request()) is not None:
                await self._answer(request)
                if self._http.our_state is h11.MUST_CLOSE:
                    return
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._send(Answer(BAD_REQUEST, f"{error}\n".encode(), "text/plain"), body=True)

    async def _request(self) -> h11.Request | None:
        """The next request, with its body passed over; None if the client has gone."""
        request: h11.Request | None = None
        while True:
            match self._http.next_event():
                case h11.NEED_DATA:
                    async with asyncio.timeout(SILENCE):
                        self._http.receive_data(await self._reader.read(_READ))
                case h11.Request() as request:
                    pass
                case h11.EndOfMessage():
                    return request
                case h11.ConnectionClosed():
                    return None
                case _:
                    continue

    async def _answer(self, request: h11.Request) -> None:
        if request.method not in (b"GET", b"HEAD"):
            await self._send(
                Answer(METHOD_NOT_ALLOWED, b"", "text/plain", (("Allow", "GET, HEAD"),)), body=True
            )
            return
        path = request.target.decode("ascii").partition("?")[0]
        await self._send(self._respond(path), body=request.method == b"GET")

    async def _send(self, answer: Answer, *, body: bool) -> None:
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("X-Content-Type-Options", "nosniff"),
            *answer.headers,
        ]
        events: list[h11.Event] = [h11.Response(status_code=answer.status, headers=headers, reason=b"")]
        if body:
            events.append(h11.Data(data=answer.body))
        events.append(h11.EndOfMessage())
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        await self._writer.drain()
