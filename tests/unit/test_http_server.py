"""HTTP over real sockets: what clients of the world do, well-behaved or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from edgeproxy import http_server
from edgeproxy.health import Answer
from edgeproxy.http_server import HttpServer

LOCALHOST = "127.0.0.1"


def respond(path: str) -> Answer:
    return Answer(200, f"you asked for {path}".encode(), "text/plain", (("X-A", "b"),))


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    server = HttpServer(respond)
    port = await server.open(LOCALHOST, 0)
    reader, writer = await asyncio.open_connection(LOCALHOST, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await server.close()


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of the next answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = next(
        int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")
    )
    return head, await reader.readexactly(length)


async def test_many_requests_on_one_connection_in_pieces_and_at_once() -> None:
    async with connected() as (reader, writer):
        for piece in (b"GE", b"T /a?b=c HTTP/1.1\r\nHost: x\r\n", b"\r\n"):
            writer.write(piece)
            await writer.drain()
        head, body = await answer(reader)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"x-a: b" in head.lower()
        assert body == b"you asked for /a"
        writer.write(b"GET /b HTTP/1.1\r\nHost: x\r\n\r\nGET /c HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [(await answer(reader))[1] for _ in range(2)] == [b"you asked for /b", b"you asked for /c"]


@pytest.mark.parametrize(
    "request_line", [b"GET / HTTP/1.0\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"]
)
async def test_who_wants_the_connection_closed_gets_it_closed(request_line: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(request_line + b"\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"you asked for /")


async def test_the_body_of_a_request_is_passed_over() -> None:
    async with connected() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        head, _ = await answer(reader)
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"allow: get, head" in head.lower()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer(reader))[0].startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"hello\r\n\r\n", b"x" * 100_000]
)
async def test_what_is_no_http_gets_400_and_the_end(nonsense: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(nonsense)
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400 ")


async def test_who_says_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SILENCE", 0.01)
    async with connected() as (reader, _):
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_close_cuts_off_who_is_connected() -> None:
    server = HttpServer(respond)
    port = await server.open(LOCALHOST, 0)
    reader, writer = await asyncio.open_connection(LOCALHOST, port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await answer(reader)
    await server.close()
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
