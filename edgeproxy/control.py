"""The control socket: how the command line talks to the daemon of the same host.

    ControlError            the daemon answered, but refused or failed
    NotRunning              nobody answers on the socket

One request line, one answer line, JSON, then the connection closes. Requests name a command and
nothing else; the daemon says which commands there are. Only processes that may write to the
socket (its user and group, root) can ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeproxy.state import CONTROL_SOCKET, StateError

log = logging.getLogger(__name__)

SOCKET_MODE = 0o660
REQUEST_LIMIT = 4096
REQUEST_TIMEOUT = 5.0
# sun_path holds 108 bytes with the terminating zero (linux/un.h).
PATH_LIMIT = 107

Answer = TypeVar("Answer", bound=msgspec.Struct)
Command = Callable[[], msgspec.Struct | None]


class ControlError(Exception):
    """The daemon answered with an error; the message is its own."""


class NotRunning(Exception):
    """No daemon answers for this state directory; the message says where it was looked for."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client asks: the name of a command."""

    command: str


class Reply(msgspec.Struct, frozen=True):
    """What the daemon answers: an error text, or the command's own answer as JSON."""

    error: str = ""
    answer: msgspec.Raw = msgspec.Raw(b"null")


class ControlServer:
    """Serves commands on `control.sock` of a state directory whose lock the caller holds."""

    def __init__(self, directory: Path, commands: Mapping[str, Command]) -> None:
        self._path = directory / CONTROL_SOCKET
        self._commands = commands
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Open the socket. One left behind by a crash is replaced: the lock says it is nobody's.

        Raises:
            StateError: the directory cannot be written, or its path is too long for a socket.
        """
        if len(os.fsencode(self._path)) > PATH_LIMIT:
            raise StateError(
                f"{self._path} is too long for a socket ({PATH_LIMIT} bytes): choose a shorter [state] dir"
            )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            # The mode must be right from the first moment, hence the mask and no later chmod.
            mask = os.umask(0o777 & ~SOCKET_MODE)
            try:
                listener.bind(os.fspath(self._path))
            finally:
                os.umask(mask)
        except OSError as error:
            listener.close()
            raise StateError(f"{self._path} cannot be made: {error.strerror}") from None
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_LIMIT)

    async def close(self) -> None:
        """Close and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT)
            if line:
                writer.write(msgspec.json.encode(self._reply(line)) + b"\n")
                await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT)
        except (OSError, ValueError, TimeoutError):
            # A client that went away, sends no line or reads no answer is its own problem.
            log.debug("control connection ended early", exc_info=True)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _reply(self, line: bytes) -> Reply:
        try:
            request = msgspec.json.decode(line, type=Request)
        except msgspec.MsgspecError as error:
            return Reply(error=f"not a request: {error}")
        command = self._commands.get(request.command)
        if command is None:
            known = ", ".join(sorted(self._commands))
            return Reply(error=f"unknown command {request.command!r}, expected one of {known}")
        try:
            return Reply(answer=msgspec.Raw(msgspec.json.encode(command())))
        except Exception as error:  # a failing command must not take the daemon down
            log.exception("control command %s failed", request.command)
            return Reply(error=f"{request.command} failed: {error}")


def ask(directory: Path, command: str, answer: type[Answer], timeout: float = 10.0) -> Answer:
    """Send one command to the daemon of a state directory and wait for its answer. Blocks.

    timeout: seconds for each step.

    Raises:
        NotRunning: nobody answers.
        ControlError: the daemon refused or failed, or is of another version.
    """
    reply = _exchange(directory, command, timeout)
    try:
        return msgspec.json.decode(reply.answer, type=answer)
    except msgspec.MsgspecError as error:
        raise ControlError(
            f"the daemon's answer is not understood ({error}): is it of another version?"
        ) from None


def tell(directory: Path, command: str, timeout: float = 10.0) -> None:
    """Send one command that has no answer of its own. Blocks; raises as :func:`ask`."""
    _exchange(directory, command, timeout)


def _exchange(directory: Path, command: str, timeout: float) -> Reply:
    path = directory / CONTROL_SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(msgspec.json.encode(Request(command)) + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        reply = msgspec.json.decode(line, type=Reply)
    except TimeoutError:
        raise NotRunning(f"the daemon does not answer on {path} within {timeout:g} s") from None
    except PermissionError:
        raise ControlError(f"{path}: permission denied; run as root or in the daemon's group") from None
    except OSError as error:
        raise NotRunning(f"no daemon answers on {path} ({error.strerror or error}); is it running?") from None
    except msgspec.MsgspecError:
        raise NotRunning(f"the daemon on {path} hung up without an answer") from None
    if reply.error:
        raise ControlError(reply.error)
    return reply
