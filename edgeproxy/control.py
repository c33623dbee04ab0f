"""The control socket: how the command line talks to the daemon of the same host.

    ControlError            the daemon answered, but refused or failed
    NotRunning              nobody answers on the socket

One request line, one answer line, JSON, then the connection closes. Requests name a command and
nothing else; the daemon says which commands there are. Only processes that may write to the
socket (its user and group, root) can ask. This is the client's side; the daemon's is `control_server`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeproxy.state import CONTROL_SOCKET

Answer = TypeVar("Answer", bound=msgspec.Struct)


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
