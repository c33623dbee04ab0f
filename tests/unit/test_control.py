"""The control socket: commands, refusals, and clients and daemons that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from edgeproxy.control import ControlError, NotRunning, ask, tell
from edgeproxy.control_server import ControlServer
from edgeproxy.state import StateError


class Pong(msgspec.Struct, frozen=True):
    text: str


def fail() -> None:
    raise RuntimeError("no such luck")


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Path]:
    told: list[str] = []

    def note() -> None:
        told.append("noted")

    commands = {"ping": lambda: Pong("x" * 200_000), "note": note, "fail": fail}
    server = ControlServer(tmp_path, commands)
    await server.start()
    yield tmp_path
    await server.close()


async def test_a_command_is_answered(directory: Path) -> None:
    answer = await asyncio.to_thread(ask, directory, "ping", Pong)

    assert len(answer.text) == 200_000


async def test_a_command_without_an_answer(directory: Path) -> None:
    await asyncio.to_thread(tell, directory, "note")


async def test_the_socket_is_for_user_and_group_only(directory: Path) -> None:
    assert stat.S_IMODE((directory / "control.sock").stat().st_mode) == 0o660


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fail", "fail failed: no such luck"),
        ("dance", "unknown command 'dance', expected one of fail, note, ping"),
    ],
)
async def test_errors_reach_the_client_and_the_daemon_lives_on(
    directory: Path, command: str, message: str
) -> None:
    with pytest.raises(ControlError, match=message):
        await asyncio.to_thread(tell, directory, command)

    await asyncio.to_thread(tell, directory, "note")


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b'{"command":"note","more":1}\n', b"\xff\n"])
async def test_what_is_no_request_is_refused(directory: Path, line: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(directory / "control.sock")
    writer.write(line)

    assert b"not a request" in await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_an_endless_request_is_cut_off(directory: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(directory / "control.sock")
    writer.write(b"x" * 100_000)

    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await asyncio.to_thread(tell, directory, "note")


async def test_an_answer_of_another_version(directory: Path) -> None:
    class Other(msgspec.Struct):
        number: int

    with pytest.raises(ControlError, match="another version"):
        await asyncio.to_thread(ask, directory, "ping", Other)


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match=r"no daemon answers on .*control\.sock \(No such file"):
        tell(tmp_path, "status")


async def test_a_socket_left_behind_is_nobody_and_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    with pytest.raises(NotRunning, match="Connection refused"):
        tell(tmp_path, "note")

    server = ControlServer(tmp_path, {"note": lambda: None})
    await server.start()
    await asyncio.to_thread(tell, tmp_path, "note")
    await server.close()
    assert not (tmp_path / "control.sock").exists()


def test_a_daemon_that_hangs(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "control.sock"))
        hung.listen()
        with pytest.raises(NotRunning, match=r"does not answer .* within 0\.05 s"):
            tell(tmp_path, "note", timeout=0.05)


async def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="too long for a socket"):
        await ControlServer(tmp_path / ("d" * 100), {}).start()
