"""IPVS over generic netlink: virtual servers and destinations, bytes ⇄ values.

Theory of operation. Every request is a generic netlink message of family `IPVS` whose payload
names a virtual server (nested attribute SERVICE: family and either protocol, address and port,
or a firewall mark) and, for destination commands, a destination (nested attribute DEST). A
command that makes or edits something must carry the *full* set of its attributes; what is left
out of an edit is not kept but reset, with one exception: scheduler flags, which come with a
mask. The kernel answers reads with the same attributes and with statistics.

Numbers and layouts are those of `include/uapi/linux/ip_vs.h`, behaviour that of
`net/netfilter/ipvs/ip_vs_ctl.c`. Numbers are in host byte order, ports in network order, an
IPv4 address occupies the first 4 of 16 bytes when the kernel writes it and may be sent as 4.
Persistence netmask: IPv4 a mask in network order, IPv6 a prefix length in host order, both in
the same 32 bit attribute; for IPv6 the kernel refuses 0.
"""

from __future__ import annotations

import enum
import functools
import struct

from edgeproxy.address import IPV4_LENGTH, IPV6_LENGTH, Address
from edgeproxy.kernel import netlink
from edgeproxy.kernel.ipvs_entries import (
    AF_INET,
    AF_INET6,
    DestinationEntry,
    Forwarding,
    Information,
    ServiceFlag,
    Statistics,
    Timeouts,
    VirtualServerEntry,
)
from edgeproxy.kernel.ipvs_entries import VirtualServerState as VirtualServerState
from edgeproxy.kernel.netlink import Attributes, MalformedError
from edgeproxy.model import Frontend, RealServer

FAMILY_NAME = "IPVS"


class Command(enum.IntEnum):
    """IPVS_CMD_*."""

    NEW_SERVICE = 1
    SET_SERVICE = 2
    DEL_SERVICE = 3
    GET_SERVICE = 4
    NEW_DEST = 5
    SET_DEST = 6
    DEL_DEST = 7
    GET_DEST = 8
    SET_CONFIG = 12
    GET_CONFIG = 13
    SET_INFO = 14
    GET_INFO = 15
    ZERO = 16
    FLUSH = 17


class Field(enum.IntEnum):
    """IPVS_CMD_ATTR_*: the first level of attributes."""

    SERVICE = 1
    DEST = 2
    DAEMON = 3
    TIMEOUT_TCP = 4
    TIMEOUT_TCP_FIN = 5
    TIMEOUT_UDP = 6


class ServiceField(enum.IntEnum):
    """IPVS_SVC_ATTR_*."""

    AF = 1
    PROTOCOL = 2
    ADDR = 3
    PORT = 4
    FWMARK = 5
    SCHED_NAME = 6
    FLAGS = 7
    TIMEOUT = 8
    NETMASK = 9
    STATS = 10
    PE_NAME = 11
    STATS64 = 12


class DestinationField(enum.IntEnum):
    """IPVS_DEST_ATTR_*."""

    ADDR = 1
    PORT = 2
    FWD_METHOD = 3
    WEIGHT = 4
    U_THRESH = 5
    L_THRESH = 6
    ACTIVE_CONNS = 7
    INACT_CONNS = 8
    PERSIST_CONNS = 9
    STATS = 10
    ADDR_FAMILY = 11
    STATS64 = 12
    TUN_TYPE = 13
    TUN_PORT = 14
    TUN_FLAGS = 15


# HASHED is the kernel's own; a NEW_SERVICE that carries it is never hashed and cannot be found.
_WRITABLE_FLAGS = 0xFFFFFFFF & ~int(ServiceFlag.HASHED)
_FLAGS = struct.Struct("=II")


# -- requests ----------------------------------------------------------------------------------


def request(command: Command, *attributes: bytes) -> bytes:
    """The payload of one request: generic header and first-level attributes."""
    return netlink.generic_header(command) + b"".join(attributes)


@functools.lru_cache(maxsize=256)
def frontend_identity(frontend: Frontend) -> bytes:
    """The SERVICE attribute that names a virtual server; cached, batches repeat it per destination."""
    return netlink.nested(
        Field.SERVICE, _address_identity(frontend.address, frontend.protocol, frontend.port)
    )


def _address_identity(address: Address, protocol: int, port: int) -> bytes:
    return _before_service_address(protocol, len(address)) + address + _service_port(port)


@functools.lru_cache(maxsize=16)
def _before_service_address(protocol: int, length: int) -> bytes:
    """The fields that name a virtual server, up to its address, which is so long."""
    address = bytes(length)
    fields = (
        netlink.u16(ServiceField.AF, _family(Address(address))),
        netlink.u16(ServiceField.PROTOCOL, protocol),
        netlink.attribute(ServiceField.ADDR, address),
    )
    return b"".join(fields)[:-length]


@functools.lru_cache(maxsize=256)
def _service_port(port: int) -> bytes:
    return netlink.be16(ServiceField.PORT, port)


def _family(address: Address) -> int:
    return AF_INET if len(address) == IPV4_LENGTH else AF_INET6


def service_identity(entry: VirtualServerEntry) -> bytes:
    """The SERVICE attribute that names an entry, firewall marks included."""
    if not entry.fwmark:
        return netlink.nested(Field.SERVICE, _address_identity(entry.address, entry.protocol, entry.port))
    return netlink.nested(
        Field.SERVICE,
        netlink.u16(ServiceField.AF, entry.family),
        netlink.u32(ServiceField.FWMARK, entry.fwmark),
    )


def encode_service(entry: VirtualServerEntry) -> bytes:
    """The SERVICE attribute with everything NEW_SERVICE and SET_SERVICE need."""
    settings = _service_settings(
        entry.scheduler, entry.flags, entry.timeout, entry.netmask, entry.persistence_engine, entry.family
    )
    return netlink.nested(Field.SERVICE, service_identity(entry)[4:], settings)


@functools.lru_cache(maxsize=256)
def _service_settings(
    scheduler: str, flags: int, timeout: int, netmask: int, engine: str, family: int
) -> bytes:
    """The fields of a SERVICE attribute that can be edited; most virtual servers have the same."""
    encode = netlink.be32 if family == AF_INET else netlink.u32
    parts = [
        netlink.string(ServiceField.SCHED_NAME, scheduler),
        netlink.attribute(ServiceField.FLAGS, _FLAGS.pack(flags & _WRITABLE_FLAGS, _WRITABLE_FLAGS)),
        netlink.u32(ServiceField.TIMEOUT, timeout),
        encode(ServiceField.NETMASK, netmask),
    ]
    if engine:
        parts.append(netlink.string(ServiceField.PE_NAME, engine))
    return b"".join(parts)


def destination_identity(address: Address, port: int) -> bytes:
    """The DEST attribute that names a destination."""
    return netlink.nested(
        Field.DEST,
        netlink.attribute(DestinationField.ADDR, address),
        netlink.be16(DestinationField.PORT, port),
        netlink.u16(DestinationField.ADDR_FAMILY, _family(address)),
    )


def encode_destination(entry: DestinationEntry) -> bytes:
    """The DEST attribute with everything NEW_DEST and SET_DEST need."""
    parts = [
        destination_identity(entry.address, entry.port)[4:],
        netlink.u32(DestinationField.FWD_METHOD, entry.forwarding),
        netlink.u32(DestinationField.WEIGHT, entry.weight),
        netlink.u32(DestinationField.U_THRESH, entry.upper),
        netlink.u32(DestinationField.L_THRESH, entry.lower),
    ]
    if entry.tunnel_type or entry.tunnel_port or entry.tunnel_flags:
        parts += (
            netlink.u8(DestinationField.TUN_TYPE, entry.tunnel_type),
            netlink.be16(DestinationField.TUN_PORT, entry.tunnel_port),
            netlink.u16(DestinationField.TUN_FLAGS, entry.tunnel_flags),
        )
    return netlink.nested(Field.DEST, *parts)


def encode_real_server(real: RealServer) -> bytes:
    """As :func:`encode_destination` of a masqueraded real server."""
    before, after = around_address(real)
    return before + real.address + after


def around_address(real: RealServer) -> tuple[bytes, bytes]:
    """What stands before and after the address in :func:`encode_real_server`; it varies little within a service."""
    length = len(real.address)
    return _before_address(length), _after_address(real.port, real.weight, length)


@functools.lru_cache(maxsize=256)
def _after_address(port: int, weight: int, length: int) -> bytes:
    """The fields of a DEST attribute that follow its address, which is so long."""
    return b"".join(
        (
            netlink.be16(DestinationField.PORT, port),
            netlink.u16(DestinationField.ADDR_FAMILY, _family(Address(bytes(length)))),
            netlink.u32(DestinationField.FWD_METHOD, Forwarding.MASQUERADE),
            netlink.u32(DestinationField.WEIGHT, weight),
            netlink.u32(DestinationField.U_THRESH, 0),
            netlink.u32(DestinationField.L_THRESH, 0),
        )
    )


@functools.lru_cache(maxsize=2)
def _before_address(length: int) -> bytes:
    """A DEST attribute up to its address, which is so long."""
    address = bytes(length)
    whole = netlink.nested(
        Field.DEST, netlink.attribute(DestinationField.ADDR, address), _after_address(0, 0, length)
    )
    return whole[: whole.index(address, 8)]


def encode_timeouts(timeouts: Timeouts) -> bytes:
    """The payload of a SET_CONFIG. A 0 is left out; the kernel would keep the old value anyway."""
    return request(
        Command.SET_CONFIG,
        *(
            netlink.u32(field, value)
            for field, value in (
                (Field.TIMEOUT_TCP, timeouts.tcp),
                (Field.TIMEOUT_TCP_FIN, timeouts.tcp_fin),
                (Field.TIMEOUT_UDP, timeouts.udp),
            )
            if value
        ),
    )


# -- answers -----------------------------------------------------------------------------------


def decode_service(payload: bytes, *, statistics: bool = False) -> VirtualServerEntry:
    """The virtual server in the payload of a NEW_SERVICE message.

    Raises:
        MalformedError: no SERVICE attribute, or one that lacks its family.
    """
    fields = netlink.attributes(_nested(payload, Field.SERVICE))
    family = netlink.number(_need(fields, ServiceField.AF))
    fwmark = netlink.number(fields.get(ServiceField.FWMARK, b""))
    netmask = fields.get(ServiceField.NETMASK, b"")
    return VirtualServerEntry(
        family=family,
        protocol=netlink.number(fields.get(ServiceField.PROTOCOL, b"")),
        address=Address(b"") if fwmark else _address(_need(fields, ServiceField.ADDR), family),
        port=netlink.big_endian(fields.get(ServiceField.PORT, b"")),
        scheduler=netlink.text(fields.get(ServiceField.SCHED_NAME, b"")),
        fwmark=fwmark,
        flags=netlink.number(fields.get(ServiceField.FLAGS, b"")[:4]),
        timeout=netlink.number(fields.get(ServiceField.TIMEOUT, b"")),
        netmask=netlink.big_endian(netmask) if family == AF_INET else netlink.number(netmask),
        persistence_engine=netlink.text(fields.get(ServiceField.PE_NAME, b"")),
        statistics=_statistics(fields, ServiceField.STATS, ServiceField.STATS64) if statistics else None,
    )


def decode_destination(payload: bytes, family: int, *, statistics: bool = False) -> DestinationEntry:
    """The destination in the payload of a NEW_DEST message.

    family: of its virtual server, for kernels before 3.18 that do not say the destination's.

    Raises:
        MalformedError: no DEST attribute, or one that lacks address or port.
    """
    fields = netlink.attributes(_nested(payload, Field.DEST))
    family = netlink.number(fields.get(DestinationField.ADDR_FAMILY, b"")) or family
    number = netlink.number
    return DestinationEntry(
        address=_address(_need(fields, DestinationField.ADDR), family),
        port=netlink.big_endian(_need(fields, DestinationField.PORT)),
        forwarding=number(fields.get(DestinationField.FWD_METHOD, b"")),
        weight=number(fields.get(DestinationField.WEIGHT, b"")),
        upper=number(fields.get(DestinationField.U_THRESH, b"")),
        lower=number(fields.get(DestinationField.L_THRESH, b"")),
        active=number(fields.get(DestinationField.ACTIVE_CONNS, b"")),
        inactive=number(fields.get(DestinationField.INACT_CONNS, b"")),
        persistent=number(fields.get(DestinationField.PERSIST_CONNS, b"")),
        tunnel_type=number(fields.get(DestinationField.TUN_TYPE, b"")),
        tunnel_port=netlink.big_endian(fields.get(DestinationField.TUN_PORT, b"")),
        tunnel_flags=number(fields.get(DestinationField.TUN_FLAGS, b"")),
        statistics=_statistics(fields, DestinationField.STATS, DestinationField.STATS64)
        if statistics
        else None,
    )


def decode_timeouts(payload: bytes) -> Timeouts:
    """The answer to GET_CONFIG; 0 where the kernel was built without the protocol."""
    fields = netlink.attributes(payload, netlink.GENERIC_HEADER_LENGTH)
    return Timeouts(
        netlink.number(fields.get(Field.TIMEOUT_TCP, b"")),
        netlink.number(fields.get(Field.TIMEOUT_TCP_FIN, b"")),
        netlink.number(fields.get(Field.TIMEOUT_UDP, b"")),
    )


def decode_information(payload: bytes) -> Information:
    """The answer to GET_INFO: attribute 1 is the version, 2 the table size (IPVS_INFO_ATTR_*)."""
    fields = netlink.attributes(payload, netlink.GENERIC_HEADER_LENGTH)
    version = netlink.number(fields.get(1, b""))
    return Information(
        f"{version >> 16 & 255}.{version >> 8 & 255}.{version & 255}", netlink.number(fields.get(2, b""))
    )


def _nested(payload: bytes, field: Field) -> bytes:
    return _need(netlink.attributes(payload, netlink.GENERIC_HEADER_LENGTH), field)


def _need(fields: Attributes, field: enum.IntEnum) -> bytes:
    try:
        return fields[field]
    except KeyError:
        raise MalformedError(f"IPVS message without attribute {type(field).__name__}.{field.name}") from None


def _address(value: bytes, family: int) -> Address:
    length = IPV4_LENGTH if family == AF_INET else IPV6_LENGTH
    if len(value) < length:
        raise MalformedError(f"IPVS address of {len(value)} bytes in family {family}, expected {length}")
    return Address(value[:length])


def _statistics(fields: Attributes, narrow: enum.IntEnum, wide: enum.IntEnum) -> Statistics | None:
    value = fields.get(wide) or fields.get(narrow)
    if value is None:
        return None
    counters = netlink.attributes(value)
    return Statistics(*(netlink.number(counters.get(field, b"")) for field in range(1, 11)))
