"""The daemon's side of the control socket; `control` has the protocol and the client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from edgeproxy.control import Reply, Request
from edgeproxy.state import CONTROL_SOCKET, StateError

log = logging.getLogger(__name__)

SOCKET_MODE = 0o660
REQUEST_LIMIT = 4096
REQUEST_TIMEOUT = 5.0
# sun_path holds 108 bytes with the terminating zero (linux/un.h).
PATH_LIMIT = 107

Command = Callable[[], msgspec.Struct | None]


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
