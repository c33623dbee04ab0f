"""IPVS's answers in the layout that current kernels write, many times as fast as by the general way.

A full read is thousands of virtual servers and tens of thousands of destinations. Kernels since 5.3
write the attributes in one order and length. So a datagram full of destinations is equal messages, of
which one unpack reads a whole one: the message's length and every attribute's header (length and
type as one number) are compared. And virtual servers differ in little but address and port: what
stands before and after these is decoded once and kept. Anything unexpected goes the general way of
:mod:`edgeproxy.kernel.ipvs_codec`.
"""

from __future__ import annotations

import functools
import struct

from edgeproxy.address import IPV4_LENGTH, Address
from edgeproxy.kernel import ipvs_codec as codec
from edgeproxy.kernel import netlink
from edgeproxy.kernel.ipvs_codec import Command, DestinationField, Field, ServiceField
from edgeproxy.kernel.ipvs_entries import AF_INET, DestinationEntry, VirtualServerEntry

_ATTRIBUTE = struct.Struct("=HH")
_ADDRESS_AT, _PORT_AT, _SCHEDULER_AT = 28, 44, 52
"""Offsets of the address, of the port's header and of the scheduler's in a payload: generic header 0, SERVICE 4, AF 8,
PROTOCOL 16, ADDR 24 (ip_vs_genl_fill_service). PE_NAME, FLAGS, TIMEOUT, NETMASK, STATS and STATS64 follow."""
_ADDRESS_HEADER = _ATTRIBUTE.pack(20, ServiceField.ADDR)
_PORT_HEADER = _ATTRIBUTE.pack(6, ServiceField.PORT)
_STATISTICS = tuple(struct.pack("=H", ServiceField.STATS | flag) for flag in (0, netlink.NESTED))
_SETTINGS = 12 + 8 + 8
"""Bytes of FLAGS, TIMEOUT and NETMASK."""


def decode_service(payload: bytes) -> VirtualServerEntry:
    """As :func:`~edgeproxy.kernel.ipvs_codec.decode_service` without statistics."""
    size = len(payload)
    whole = size > _SCHEDULER_AT + 4 and _ATTRIBUTE.unpack_from(payload, 4)[0] == size - 4
    if whole and payload[_PORT_AT : _PORT_AT + 4] == _PORT_HEADER:
        length, kind = _ATTRIBUTE.unpack_from(payload, _SCHEDULER_AT)
        end = _SCHEDULER_AT + (length + 3 & ~3) + _SETTINGS
        # Statistics follow at once: there is no persistence engine in between.
        if kind == ServiceField.SCHED_NAME and payload[end + 2 : end + 4] in _STATISTICS:
            common = _common(payload[:_ADDRESS_AT], payload[_SCHEDULER_AT:end])
            if common is not None:
                return _at(common, payload)
    return codec.decode_service(payload)


def _at(common: VirtualServerEntry, payload: bytes) -> VirtualServerEntry:
    length = IPV4_LENGTH if common.family == AF_INET else 16
    return VirtualServerEntry(
        common.family,
        common.protocol,
        Address(payload[_ADDRESS_AT : _ADDRESS_AT + length]),
        payload[_PORT_AT + 4] << 8 | payload[_PORT_AT + 5],
        common.scheduler,
        0,
        common.flags,
        common.timeout,
        common.netmask,
    )


@functools.lru_cache(maxsize=256)
def _common(before: bytes, after: bytes) -> VirtualServerEntry | None:
    """What virtual servers of this kind have in common, at some address and port; None for another layout.

    before: the payload up to the address. after: from the scheduler up to the statistics.
    """
    if before[-4:] != _ADDRESS_HEADER:
        return None
    inner = before[8:] + bytes(16) + _PORT_HEADER + bytes(4) + after
    common = codec.decode_service(before[:4] + _ATTRIBUTE.pack(4 + len(inner), Field.SERVICE) + inner)
    return None if common.fwmark or common.persistence_engine else common


_CURRENT_LAYOUT = (
    (DestinationField.ADDR, 16),
    (DestinationField.PORT, 2),
    (DestinationField.FWD_METHOD, 4),
    (DestinationField.WEIGHT, 4),
    (DestinationField.TUN_TYPE, 1),
    (DestinationField.TUN_PORT, 2),
    (DestinationField.TUN_FLAGS, 2),
    (DestinationField.U_THRESH, 4),
    (DestinationField.L_THRESH, 4),
    (DestinationField.ACTIVE_CONNS, 4),
    (DestinationField.INACT_CONNS, 4),
    (DestinationField.PERSIST_CONNS, 4),
    (DestinationField.ADDR_FAMILY, 2),
)
# length, type, sequence of the message; command; header and value of each attribute
_CURRENT = "=I H2x I 4x B3x 4x I16s I2s2x II II IB3x I2s2x IH2x II II II II II IH2x"
_CURRENT_SIZE = struct.calcsize(_CURRENT)
_CURRENT_HEADERS = tuple(
    int(struct.unpack("=I", struct.pack("=HH", 4 + length, field))[0]) for field, length in _CURRENT_LAYOUT
)


@functools.lru_cache(maxsize=8)
def _current(length: int) -> struct.Struct:
    return struct.Struct(f"{_CURRENT}{length - _CURRENT_SIZE}x")


def decode_destinations(datagram: bytes, kind: int, sequence: int) -> list[DestinationEntry] | None:
    """The destinations, without statistics, in a datagram of nothing but NEW_DEST messages of the
    layout of current kernels; None if it is anything else.

    kind: number of the generic netlink family. sequence: of the request.
    """
    length = netlink.number(datagram[:4])
    if length < _CURRENT_SIZE or len(datagram) % length:
        return None
    expected = (length, kind, sequence, Command.NEW_DEST)
    entries = []
    for found in _current(length).iter_unpack(datagram):
        if found[:4] != expected or found[4::2] != _CURRENT_HEADERS:
            return None
        (
            address,
            port,
            forwarding,
            weight,
            tunnel,
            tunnel_port,
            flags,
            upper,
            lower,
            active,
            inactive,
            held,
            family,
        ) = found[5::2]
        entries.append(
            DestinationEntry(
                Address(address[:IPV4_LENGTH] if family == AF_INET else address),
                int.from_bytes(port, "big"),
                forwarding,
                weight,
                upper,
                lower,
                active,
                inactive,
                held,
                tunnel,
                int.from_bytes(tunnel_port, "big"),
                flags,
            )
        )
    return entries
