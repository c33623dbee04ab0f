"""Tracked connections: read with the kernel's own filters, delete in batches.

A table of a million flows is read as a stream, only the wanted attributes of the wanted flows are decoded;
where the kernel can filter (5.8 and later), the others never leave it. An older one lists more,
and the same conditions are applied here.

Sources: include/uapi/linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import enum
import errno
import struct
from collections.abc import Generator, Sequence

import msgspec

from edgeproxy.address import Address, family, is_ipv4, with_port
from edgeproxy.kernel.netlink import (
    Answer,
    Control,
    Flag,
    NetlinkError,
    answer,
    attribute,
    attributes,
    be16,
    be32,
    big_endian,
    message,
    nested,
    u8,
    u32,
)
from edgeproxy.kernel.netlink_socket import NETLINK_NETFILTER, NetlinkSocket, NetlinkUser

_AF_INET, _AF_INET6 = 2, 10
_NEW, _GET, _DELETE = (1 << 8 | command for command in (0, 1, 2))
_BATCH = 500
_NESTED = 0x8000

# CTA_*
_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _MARK, _ID, _ZONE = 1, 2, 3, 4, 7, 8, 12, 18
_MARK_MASK, _FILTER = 21, 25
_IP, _PROTO = 1, 2
_PROTO_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FILTER_ORIGINAL, _FILTER_REPLY = 1, 2
_INFO_TCP, _TCP_STATE = 1, 1

_BY_SOURCE, _BY_PROTOCOL, _BY_SOURCE_PORT = 0x1, 0x8, 0x10  # CTA_FILTER_FLAG

# A tuple of a protocol with ports, as the kernel writes it: two addresses, the protocol, two ports.
_TUPLE4 = struct.Struct(">8x4s4x4s8xB7xH6xH2x")
_TUPLE6 = struct.Struct(">8x16s4x16s8xB7xH6xH2x")


class Status(enum.IntFlag):
    """IPS_*, as far as it matters to us."""

    SEEN_REPLY = 0x2
    ASSURED = 0x4
    CONFIRMED = 0x8
    SOURCE_NAT = 0x10
    DESTINATION_NAT = 0x20
    DYING = 0x200


class TcpState(enum.IntEnum):
    """TCP_CONNTRACK_*."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


class ConntrackError(Exception):
    """The kernel refused to list or to delete flows, or has no connection tracking."""


class Direction(msgspec.Struct, frozen=True, order=True, gc=False):
    """One direction of a flow: where its packets come from and go to."""

    source: Address
    source_port: int
    destination: Address
    destination_port: int

    def __str__(self) -> str:
        there = with_port(self.destination, self.destination_port)
        return f"{with_port(self.source, self.source_port)} -> {there}"


class Flow(msgspec.Struct, frozen=True, gc=False):
    """A tracked connection of a protocol with ports.

    original: what the client sent; reply: what the answer is expected to be (its source is the backend).
    status: bits of `Status`. tcp_state: a `TcpState`, -1 for other protocols. mark: the conntrack mark. timeout: seconds
    of life left without a packet. id: the kernel's own; a flow made anew mostly has another.
    """

    protocol: int
    original: Direction
    reply: Direction
    status: int
    tcp_state: int
    mark: int
    timeout: int
    id: int
    zone: int = 0

    def __str__(self) -> str:
        return f"{self.protocol} {self.original} (answered {self.reply})"


class Selection(msgspec.Struct, frozen=True):
    """Which flows to list; every condition must hold.

    family: AF_INET or AF_INET6. protocol: its number, 0 for all with ports. mark, mask: `flow.mark & mask == mark`.
    reply_source: address the answers come from; reply_source_port: their port, 0 for any.
    """

    family: int
    protocol: int = 0
    mark: int = 0
    mask: int = 0
    reply_source: Address | None = None
    reply_source_port: int = 0

    def __contains__(self, flow: Flow) -> bool:
        return (
            self.protocol in (0, flow.protocol)
            and flow.mark & self.mask == self.mark & self.mask
            and self.reply_source in (None, flow.reply.source)
            and self.reply_source_port in (0, flow.reply.source_port)
        )


# -- codec -------------------------------------------------------------------------------------


def _head(af: int) -> bytes:
    return struct.pack(">BBH", af, 0, 0)


def request(selection: Selection) -> bytes:
    """The payload of a request to list a selection, with the conditions the kernel can check by itself.

    Raises:
        ValueError: a port without a protocol, which the kernel can't filter by.
    """
    payload = _head(selection.family)
    if selection.mask:
        payload += be32(_MARK, selection.mark) + be32(_MARK_MASK, selection.mask)
    if selection.reply_source_port and not selection.protocol:
        raise ValueError("a selection by port needs a protocol")
    flags = _BY_PROTOCOL if selection.protocol else 0
    parts = []
    # For IPv6 the kernel has the comparison of addresses the wrong way round (ctnetlink_filter_match_tuple, seen
    # on 6.18): it leaves out exactly what was asked for. So these are compared here only.
    if selection.reply_source is not None and is_ipv4(selection.reply_source):
        flags |= _BY_SOURCE
        parts.append(nested(_IP, attribute(_ip_source(selection.reply_source), selection.reply_source)))
    if selection.protocol:
        ports = be16(_SOURCE_PORT, selection.reply_source_port) if selection.reply_source_port else b""
        flags |= _BY_SOURCE_PORT if ports else 0
        parts.append(nested(_PROTO, u8(_PROTO_NUMBER, selection.protocol), ports))
    if not flags:
        return payload
    return payload + nested(_REPLY, *parts) + nested(_FILTER, u32(_FILTER_REPLY, flags))


def deletion(flow: Flow) -> bytes:
    """The payload of a request to delete a flow; it names the id, so a newer one of the same tuple mostly stays."""
    way = flow.original
    source = _ip_source(way.source)
    original = nested(
        _ORIGINAL,
        nested(_IP, attribute(source, way.source), attribute(source + 1, way.destination)),
        nested(
            _PROTO,
            u8(_PROTO_NUMBER, flow.protocol),
            be16(_SOURCE_PORT, way.source_port),
            be16(_DESTINATION_PORT, way.destination_port),
        ),
    )
    zone = be16(_ZONE, flow.zone) if flow.zone else b""
    return _head(family(way.source)) + original + be32(_ID, flow.id) + zone


def decode(payload: bytes) -> Flow | None:
    """The flow of an IPCTNL_MSG_CT_NEW, None for a protocol without ports.

    Raises:
        MalformedError: the bytes are no attributes.
    """
    found = attributes(payload, 4)
    form = _TUPLE4 if payload[0] == _AF_INET else _TUPLE6
    original, reply = found.get(_ORIGINAL, b""), found.get(_REPLY, b"")
    # ICMP, and tuples with a zone of their own, have another length.
    if len(original) != form.size or len(reply) != form.size:
        return None
    source, destination, protocol, port, to_port = form.unpack(original)
    reply_source, reply_destination, _, reply_port, reply_to_port = form.unpack(reply)
    info = found.get(_PROTOCOL_INFO)
    return Flow(
        protocol,
        Direction(source, port, destination, to_port),
        Direction(reply_source, reply_port, reply_destination, reply_to_port),
        big_endian(found.get(_STATUS, b"")),
        _tcp_state(info) if info else -1,
        big_endian(found.get(_MARK, b"")),
        big_endian(found.get(_TIMEOUT, b"")),
        big_endian(found.get(_ID, b"")),
        big_endian(found.get(_ZONE, b"")),
    )


def _tcp_state(info: bytes) -> int:
    state = attributes(attributes(info).get(_INFO_TCP, b"")).get(_TCP_STATE)
    return big_endian(state) if state else -1


def _ip_source(address: Address) -> int:
    """CTA_IP_V4_SRC or CTA_IP_V6_SRC; the destination's type is the next number."""
    return 1 if len(address) == 4 else 3


# -- wire --------------------------------------------------------------------------------------


class Conntrack(NetlinkUser):
    """The connection tracking of the calling thread's network namespace. Needs CAP_NET_ADMIN; methods do not wait.

    Raises:
        OSError: this kernel has no netfilter netlink.
    """

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER, buffer=1 << 20)

    def flows(self, selection: Selection) -> Generator[Flow, None, None]:
        """The flows of a selection, read while they are iterated: finish before the next call on this object.

        A flow that moves in the table meanwhile can be missed or come twice.

        Raises:
            ConntrackError: the kernel refused.
        """
        (sequence,) = self._netlink.sequences()
        try:
            self._netlink.drain()  # the rest of a list that was left half-read
            self._netlink.send(message(_GET, Flag.REQUEST | Flag.DUMP, sequence, request(selection)))
            while received := self._netlink.receive():
                for reply in received:
                    if reply.type in (Control.DONE, Control.ERROR):
                        said = answer(reply)
                        if said is not None and said.errno:
                            raise ConntrackError(f"listing tracked connections: {said}{_hint(said)}")
                        return
                    flow = decode(reply.payload)
                    if flow is not None and flow in selection:
                        yield flow
        except (NetlinkError, OSError) as error:
            raise ConntrackError(f"listing tracked connections: {error}") from error
        raise ConntrackError("listing tracked connections: the list ended early")

    def delete(self, flows: Sequence[Flow]) -> int:
        """Delete flows; how many were still there. Gone ones are fine.

        Raises:
            ConntrackError: the kernel refused, after having tried all of them.
        """
        deleted = 0
        refused = ""
        for start in range(0, len(flows), _BATCH):
            batch = flows[start : start + _BATCH]
            sequences = self._netlink.sequences(len(batch))
            datagram = b"".join(
                message(_DELETE, Flag.REQUEST | Flag.ACK, sequence, deletion(flow))
                for sequence, flow in zip(sequences, batch, strict=True)
            )
            try:
                replies = self._netlink.exchange(datagram, sequences)
            except (NetlinkError, OSError) as error:
                raise ConntrackError(f"deleting tracked connections: {error}") from error
            for reply in replies:
                said = answer(reply)
                if said is None or said.errno == errno.ENOENT:
                    continue
                if said.errno:
                    refused = f"{batch[reply.sequence - sequences[0]]}: {said}{_hint(said)}"
                else:
                    deleted += 1
        if refused:
            raise ConntrackError(f"deleting tracked connection {refused}")
        return deleted


def _hint(said: Answer) -> str:
    return "; edgeproxy needs CAP_NET_ADMIN" if said.errno == errno.EPERM else ""
