"""What can be done to IPVS, as values: a planner emits them, a printer shows them, a socket runs them.

Each is one message to the kernel. What "it is already so" means lies with the operation
(:func:`follow_up`): what the caller asked for is a state, not an event, so an operation may be
repeated any number of times.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

import msgspec

from edgeproxy.address import Address, with_port
from edgeproxy.kernel import ipvs_codec as codec
from edgeproxy.kernel.ipvs_codec import Command
from edgeproxy.kernel.ipvs_entries import VirtualServerEntry
from edgeproxy.model import Frontend, RealServer, VirtualServer


class AddVirtual(msgspec.Struct, frozen=True, gc=False):
    """Make a virtual server.

    adopt: if there already is one at this frontend, make its attributes these. Without it that is
        a failure (EEXIST): it may be somebody else's, who would not like it edited.
    """

    server: VirtualServer
    reason: str = ""
    adopt: bool = False

    @property
    def frontend(self) -> Frontend:
        """The frontend it acts on."""
        return self.server.frontend

    def __str__(self) -> str:
        return f"add virtual server {_describe(self.server)}"


class EditVirtual(msgspec.Struct, frozen=True, gc=False):
    """Set every attribute of a virtual server; its destinations and connections stay."""

    server: VirtualServer
    reason: str = ""

    @property
    def frontend(self) -> Frontend:
        """The frontend it acts on."""
        return self.server.frontend

    def __str__(self) -> str:
        return f"edit virtual server {_describe(self.server)}"


class RemoveVirtual(msgspec.Struct, frozen=True, gc=False):
    """Remove a virtual server and all its destinations."""

    frontend: Frontend
    reason: str = ""

    def __str__(self) -> str:
        return f"remove virtual server {self.frontend}"


class AddReal(msgspec.Struct, frozen=True, gc=False):
    """Add a real server. If it is already there, its attributes become these."""

    frontend: Frontend
    real: RealServer
    reason: str = ""

    def __str__(self) -> str:
        return f"add real server {self.real} weight {self.real.weight} to {self.frontend}"


class EditReal(msgspec.Struct, frozen=True, gc=False):
    """Set every attribute of a real server; if it is not there, it is added."""

    frontend: Frontend
    real: RealServer
    reason: str = ""

    def __str__(self) -> str:
        return f"edit real server {self.real} weight {self.real.weight} of {self.frontend}"


class RemoveReal(msgspec.Struct, frozen=True, gc=False):
    """Remove a real server; its connections die with their next packet (`expire_nodest_conn`)."""

    frontend: Frontend
    address: Address
    port: int
    reason: str = ""

    def __str__(self) -> str:
        return f"remove real server {with_port(self.address, self.port)} from {self.frontend}"


Operation = AddVirtual | EditVirtual | RemoveVirtual | AddReal | EditReal | RemoveReal

Target = tuple[Frontend, Address, int]
"""What an operation acts on; a virtual server itself has no address (b"") and port 0."""


class Failure(msgspec.Struct, frozen=True, gc=False):
    """An operation the kernel refused. Those of other frontends are not touched by it.

    operation: the very one that was given, also where another was tried in its place.
    errno: positive. message: a sentence for a finding.
    """

    operation: Operation
    errno: int
    message: str

    @property
    def unknown_scheduler(self) -> bool:
        """The scheduler is not in the kernel and its module `ip_vs_<name>` cannot be loaded."""
        return self.errno == errno.ENOENT and isinstance(self.operation, AddVirtual | EditVirtual)

    @property
    def foreign(self) -> bool:
        """There is a virtual server at this frontend already, and it was not to be adopted."""
        return self.errno == errno.EEXIST

    @property
    def vanished(self) -> bool:
        """The virtual server it needs is not there: its own making failed, or someone removed it.

        Read the frontend back and plan it anew.
        """
        return self.errno == errno.ESRCH


def failure(operation: Operation, number: int, reason: str = "") -> Failure:
    """The failure of an operation, in words."""
    if number == errno.ENOENT and isinstance(operation, AddVirtual | EditVirtual):
        name = operation.server.scheduler
        said = f"the kernel has no scheduler {name!r}: load the module ip_vs_{name} or name another scheduler"
    elif number == errno.ESRCH:
        said = "there is no such virtual server"
    elif number == errno.EEXIST:
        said = "there is a virtual server already that is not ours"
    elif number == errno.EINVAL and isinstance(operation, AddReal | EditReal):
        said = "the kernel does not take this address as a real server (not unicast, or the other family)"
    else:
        said = f"{os.strerror(number)} (errno {number})" + (f": {reason}" if reason else "")
    return Failure(operation, number, f"{operation}: {said}")


def target(operation: Operation) -> Target:
    """What an operation acts on."""
    if isinstance(operation, RemoveReal):
        return operation.frontend, operation.address, operation.port
    if isinstance(operation, AddReal | EditReal):
        return operation.frontend, operation.real.address, operation.real.port
    return operation.frontend, Address(b""), 0


def encode_all(operations: Iterable[Operation]) -> list[bytes]:
    """As :func:`encode` of each, but where real servers of one virtual server follow each other, all except their
    addresses is encoded once."""
    payloads: list[bytes] = []
    frontend: Frontend | None = None
    port = weight = length = -1
    before = after = b""
    for operation in operations:
        if type(operation) is not AddReal:
            payloads.append(encode(operation))
            continue
        real = operation.real
        address = real.address
        # Usually the same object as before; comparing it otherwise is what costs.
        if (
            operation.frontend is not frontend
            or real.weight != weight
            or real.port != port
            or len(address) != length
        ):
            frontend, port, weight, length = operation.frontend, real.port, real.weight, len(address)
            before, after = codec.around_address(real)
            before = _NEW_DEST + codec.frontend_identity(frontend) + before
        payloads.append(before + address + after)
    return payloads


def encode(operation: Operation) -> bytes:
    """The payload of the message that does it."""
    match operation:
        case AddReal(frontend, real):
            return _NEW_DEST + codec.frontend_identity(frontend) + codec.encode_real_server(real)
        case EditReal(frontend, real):
            return _SET_DEST + codec.frontend_identity(frontend) + codec.encode_real_server(real)
        case RemoveReal(frontend, address, port):
            return _DEL_DEST + codec.frontend_identity(frontend) + codec.destination_identity(address, port)
        case AddVirtual(server):
            return _NEW_SERVICE + codec.encode_service(VirtualServerEntry.of(server))
        case EditVirtual(server):
            return _SET_SERVICE + codec.encode_service(VirtualServerEntry.of(server))
        case RemoveVirtual(frontend):
            return _DEL_SERVICE + codec.frontend_identity(frontend)


_NEW_SERVICE = codec.request(Command.NEW_SERVICE)
_SET_SERVICE = codec.request(Command.SET_SERVICE)
_DEL_SERVICE = codec.request(Command.DEL_SERVICE)
_NEW_DEST = codec.request(Command.NEW_DEST)
_SET_DEST = codec.request(Command.SET_DEST)
_DEL_DEST = codec.request(Command.DEL_DEST)


def follow_up(operation: Operation, number: int, said: str = "") -> Operation | Failure | None:
    """What an error number means for an operation: done all the same (None), do this instead, or failed.

    said: the kernel's own sentence, if any.
    ENOENT is "no such destination" for destinations and "no such scheduler" for virtual servers;
    ESRCH is "no such virtual server" for both (ip_vs_ctl.c).
    """
    match operation, number:
        case AddVirtual(server, reason, True), errno.EEXIST:
            return EditVirtual(server, reason)
        case AddReal(frontend, real, reason), errno.EEXIST:
            return EditReal(frontend, real, reason)
        case EditReal(frontend, real, reason), errno.ENOENT:
            return AddReal(frontend, real, reason)
        case ((RemoveVirtual() | RemoveReal()), (errno.ESRCH | errno.ENOENT)):
            return None
        case _:
            return failure(operation, number, said)


def _describe(server: VirtualServer) -> str:
    words = [str(server.frontend), server.scheduler]
    if server.timeout:
        words.append(f"persistent {server.timeout}s")
    if server.flags:
        words.append(f"flags {server.flags:#x}")
    return " ".join(words)
