"""Which ports processes of this host listen on, asked of the kernel's socket diagnosis.

The kernel picks the listening ones, so the cost does not grow with the connections of the host.

Sources: include/uapi/linux/inet_diag.h (inet_diag_req_v2, inet_diag_msg), net/tcp_states.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from edgeproxy.address import LOOPBACK, Address
from edgeproxy.kernel.netlink import Flag, NetlinkError, answer, message
from edgeproxy.kernel.netlink_socket import NetlinkSocket
from edgeproxy.model import Protocol

_SOCK_DIAG = 4
_BY_FAMILY = 20
# An unconnected UDP socket is in the state TCP calls CLOSE.
_STATES = {Protocol.TCP: 1 << 10, Protocol.UDP: 1 << 7}
_REQUEST = struct.Struct("=BBBxI48x")
_REPLY = struct.Struct(">B3xHH16s")
_LENGTHS = {socket.AF_INET: 4, socket.AF_INET6: 16}


def listening() -> frozenset[tuple[Protocol, int]]:
    """Ports that something in this network namespace listens on, loopback addresses left out.

    A kernel without the module for it tells of none.

    Raises:
        NetlinkError, OSError: the kernel refused.
    """
    found: set[tuple[Protocol, int]] = set()
    with NetlinkSocket(_SOCK_DIAG) as netlink:
        for protocol, states in _STATES.items():
            for family in _LENGTHS:
                found.update((protocol, port) for port in _ports(netlink, family, protocol, states))
    return frozenset(found)


def _ports(netlink: NetlinkSocket, family: int, protocol: Protocol, states: int) -> Iterator[int]:
    (sequence,) = netlink.sequences()
    request = message(
        _BY_FAMILY, Flag.REQUEST | Flag.DUMP, sequence, _REQUEST.pack(family, protocol, 0, states)
    )
    for reply in netlink.exchange(request, (sequence,)):
        said = answer(reply)
        if said is None:
            address, port = decode(reply.payload)
            if port and not any(address in network for network in LOOPBACK):
                yield port
        elif said.errno not in (0, errno.ENOENT):
            raise NetlinkError(f"listing listening sockets: {said}")


def decode(payload: bytes) -> tuple[Address, int]:
    """Local address and port of an inet_diag_msg."""
    family, port, _, address = _REPLY.unpack_from(payload)
    return Address(address[: _LENGTHS[family]]), port
