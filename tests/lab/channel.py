"""The host's end of a port to the agent in the machine (see `guest/lab-agent.py`)."""

from __future__ import annotations

import base64
import json
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

CHUNK = 1 << 16


class LabError(Exception):
    """The machine failed, not the test: the message says what was waited for and how long."""


class Message(TypedDict, total=False):
    """What the agent says."""

    op: str
    nonce: str
    boot: str
    data: str
    code: int


@dataclass(frozen=True)
class Result:
    """A command that ended inside the machine. `code` is 128 + n after signal n, 127 if not found."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    def check(self) -> Result:
        """Returns itself.

        Raises:
            LabError: the command failed; the message carries its output.
        """
        if self.code != 0:
            raise LabError(f"{' '.join(self.argv)}: exit code {self.code}\n{self.stdout}{self.stderr}")
        return self


@dataclass(frozen=True)
class Command:
    """What to run. `terminal` is its size (rows, columns), None for pipes."""

    argv: tuple[str, ...]
    directory: str = "/"
    environment: tuple[tuple[str, str], ...] = ()
    terminal: tuple[int, int] | None = None


@dataclass(frozen=True)
class Limits:
    """Seconds without any output, and in all, after which a command counts as hung."""

    silence: float = 300
    total: float = 3600


class Channel:
    """One connection to the agent; one command at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._received = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, **message: object) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> Iterable[Message]:
        """Reads once and returns the messages that are complete.

        Raises:
            LabError: the machine is gone.
        """
        try:
            data = self._socket.recv(CHUNK)
        except ConnectionError:
            data = b""
        if not data:
            raise LabError("the machine is gone: it closed the agent's port (see its console log)")
        *lines, self._received = (self._received + data).split(b"\n")
        found: list[Message] = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # the torn end of what an earlier client left
        return found

    def hello(self, timeout: float, greetings: float = 1.0) -> str:
        """Waits for the agent; returns the machine's boot id. `greetings`: seconds between tries.

        Raises:
            LabError: no answer within `timeout` seconds.
        """
        nonce = secrets.token_hex(8)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self.send(op="hello", nonce=nonce, time=time.time())
            again = time.monotonic() + min(left, greetings)
            while (left := again - time.monotonic()) > 0 and self.readable(left):
                for message in self.messages():
                    if message["op"] == "hello" and message["nonce"] == nonce:
                        return message["boot"]
        raise LabError(f"the machine's agent did not answer within {timeout:.0f} s")

    def readable(self, timeout: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return bool(selector.select(timeout))

    def start(self, command: Command) -> None:
        rows, columns = command.terminal or (0, 0)
        self.send(
            op="run",
            argv=list(command.argv),
            cwd=command.directory,
            environment=dict(command.environment),
            terminal=command.terminal is not None,
        )
        if command.terminal:
            self.send(op="resize", rows=rows, columns=columns)

    def feed(self, data: bytes) -> None:
        """Standard input for the command."""
        for start in range(0, len(data), CHUNK):
            self.send(op="input", data=base64.b64encode(data[start : start + CHUNK]).decode())

    def end_input(self) -> None:
        self.send(op="eof")

    def wait(self, output: Callable[[str, bytes], None], limits: Limits, what: str) -> int:
        """Hands on output (stream `out` or `err`, data) until the command ends; its exit code.

        Raises:
            LabError: it hung or the machine is gone.
        """
        deadline = time.monotonic() + limits.total
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LabError(f"{what}: still running after {limits.total:.0f} s")
            if not self.readable(min(left, limits.silence)):
                if limits.silence < left:
                    raise LabError(f"{what}: no output for {limits.silence:.0f} s")
                continue
            for message in self.messages():
                if message["op"] == "exit":
                    return message["code"]
                if message["op"] in ("out", "err"):
                    output(message["op"], base64.b64decode(message["data"]))
