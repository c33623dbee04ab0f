"""Options of netlink sockets; above all, notification sockets that are silent about the process's own doing.

Every netlink notification names in its header the port id of the socket whose request caused
it. A two-line socket filter drops our own in the kernel, so that applying ten thousand elements
neither wakes the daemon nor fills the queue of its own subscription.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

from edgeproxy.kernel.netlink_socket import NetlinkSocket

_ATTACH_FILTER = 26
_SOL_NETLINK = 270
_GET_STRICT_CHECK = 12
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_PORT_ID_AT = 12
_WHOLE = 0xFFFFFFFF


def port_id(netlink: NetlinkSocket) -> int:
    """The netlink address of a socket: the `port_id` of every message its requests cause."""
    view = socket.socket(fileno=netlink.fileno())
    try:
        return int(view.getsockname()[0])
    finally:
        view.detach()


def strict(netlink: NetlinkSocket) -> None:
    """Let the kernel check and obey the filters of dump requests; kernels before 4.20 go on listing all."""
    view = socket.socket(fileno=netlink.fileno())
    try:
        with contextlib.suppress(OSError):
            view.setsockopt(_SOL_NETLINK, _GET_STRICT_CHECK, 1)
    finally:
        view.detach()


def ignore(netlink: NetlinkSocket, port: int) -> None:
    """Let a subscribed socket drop every notification that requests from `port` caused."""
    program = b"".join(
        _INSTRUCTION.pack(*instruction)
        for instruction in (
            (_LOAD_WORD, 0, 0, _PORT_ID_AT),
            (_JUMP_EQUAL, 0, 1, socket.htonl(port)),
            (_RETURN, 0, 0, 0),
            (_RETURN, 0, 0, _WHOLE),
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    view = socket.socket(fileno=netlink.fileno())
    try:
        view.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, head)
    finally:
        view.detach()
