"""Addresses, routes, interfaces and proxy neighbours as rtnetlink messages: bytes and values, no socket.

Sources: include/uapi/linux/rtnetlink.h, if_addr.h, if_link.h and neighbour.h of the kernel. Numbers are in
host order, addresses in network order.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from edgeproxy.address import Address, Network, family, is_ipv4, text
from edgeproxy.kernel.netlink import attribute, attributes, number, u8, u32
from edgeproxy.kernel.netlink import text as string_of

OUR_PROTOCOL = 96
"""Routing protocol number of our routes and proxy neighbours, the mark of ownership: `ip route show proto 96`."""
LOOPBACK_INDEX = 1
"""The interface index of `lo`, the same in every network namespace."""

_KEEPALIVED = 18


class Kind(enum.IntEnum):
    """RTM_*: message types."""

    NEW_LINK = 16
    DELETE_LINK = 17
    GET_LINK = 18
    NEW_ADDRESS = 20
    DELETE_ADDRESS = 21
    GET_ADDRESS = 22
    NEW_ROUTE = 24
    DELETE_ROUTE = 25
    GET_ROUTE = 26
    NEW_NEIGHBOUR = 28
    DELETE_NEIGHBOUR = 29
    GET_NEIGHBOUR = 30


class Table(enum.IntEnum):
    """RT_TABLE_*: the routing tables every host has."""

    ANY = 0
    MAIN = 254
    LOCAL = 255


class RouteType(enum.IntEnum):
    """RTN_*: what a route does, as far as it matters to us."""

    UNICAST = 1
    LOCAL = 2


class Scope(enum.IntEnum):
    """RT_SCOPE_*: how far an address or route reaches."""

    GLOBAL = 0
    SITE = 200
    LINK = 253
    HOST = 254


class AddressFlag(enum.IntFlag):
    """IFA_F_*. SECONDARY of an IPv6 address means temporary."""

    SECONDARY = 0x01
    NO_DAD = 0x02
    OPTIMISTIC = 0x04
    DAD_FAILED = 0x08
    DEPRECATED = 0x20
    TENTATIVE = 0x40
    PERMANENT = 0x80


_UNUSABLE = AddressFlag.SECONDARY | AddressFlag.DAD_FAILED | AddressFlag.DEPRECATED | AddressFlag.TENTATIVE


class HostAddress(msgspec.Struct, frozen=True, order=True, gc=False):
    """An address of an interface.

    prefix: its length in bits. scope: see `Scope`. protocol: who set it (IFAPROT_*, 18 is
    keepalived), 0 where unknown or before kernel 5.18.
    """

    address: Address
    prefix: int
    interface: str
    flags: AddressFlag = AddressFlag(0)
    scope: int = Scope.GLOBAL
    protocol: int = 0

    @property
    def usable(self) -> bool:
        """Whether it may be the source of what this host sends: global, lasting, and not a floating one."""
        return self.scope == Scope.GLOBAL and not self.flags & _UNUSABLE and self.protocol != _KEEPALIVED

    @property
    def bindable(self) -> bool:
        """Whether a server may listen on it: not while it is being probed for, nor without naming an interface."""
        probed = AddressFlag.TENTATIVE | AddressFlag.DAD_FAILED
        return not self.flags & probed and (is_ipv4(self.address) or self.scope != Scope.LINK)

    @property
    def network(self) -> Network:
        """The network it stands in."""
        return _network(self.address, self.prefix)

    def __str__(self) -> str:
        return f"{text(self.address)}/{self.prefix} dev {self.interface}"


class Route(msgspec.Struct, frozen=True, order=True, gc=False):
    """A route of any program.

    type, table, protocol: numbers of the kernel, see `RouteType` and `Table`. interface, gateway: of the first next
    hop, "" and None where it has none. metric: the lower one wins.
    """

    network: Network
    table: int
    type: int
    protocol: int
    interface: str = ""
    gateway: Address | None = None
    source: Address | None = None
    metric: int = 0

    @property
    def ours(self) -> bool:
        """Whether it is one of our local routes."""
        return self.protocol == OUR_PROTOCOL and self.type == RouteType.LOCAL and self.table == Table.LOCAL

    @property
    def default(self) -> bool:
        """Whether it is a default route of the main table."""
        return not self.network.prefix and self.table == Table.MAIN and self.type == RouteType.UNICAST

    def __str__(self) -> str:
        via = f" via {text(self.gateway)}" if self.gateway else ""
        dev = f" dev {self.interface}" if self.interface else ""
        src = f" src {text(self.source)}" if self.source else ""
        return f"{self.network}{via}{dev}{src} proto {self.protocol}"


class Interface(msgspec.Struct, frozen=True, order=True, gc=False):
    """A network interface."""

    index: int
    name: str
    up: bool
    loopback: bool


class Proxy(msgspec.Struct, frozen=True, order=True, gc=False):
    """An address an interface answers neighbour requests for (`ip neighbour add proxy`)."""

    address: Address
    interface: str
    ours: bool = True

    def __str__(self) -> str:
        return f"{text(self.address)} dev {self.interface}"


_ROUTE = struct.Struct("=BBBBBBBBI")
_ADDRESS = struct.Struct("=BBBBI")
_LINK = struct.Struct("=BxHiII")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_NEXT_HOP = struct.Struct("=HBBi")

# RTA_*, IFA_*, IFLA_*, NDA_*
_DESTINATION, _OUT, _GATEWAY, _PRIORITY, _SOURCE, _MULTIPATH, _TABLE = 1, 4, 5, 6, 7, 9, 15
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_PROTOCOL = 1, 2, 8, 11
_IFLA_NAME = 3
_NDA_DESTINATION, _NDA_PROTOCOL = 1, 12
_UP, _IS_LOOPBACK = 0x1, 0x8
_NTF_PROXY = 0x8

Names = Mapping[int, str]
"""Interface index to name."""


# -- requests ----------------------------------------------------------------------------------


def links() -> bytes:
    """Ask for all interfaces."""
    return _LINK.pack(0, 0, 0, 0, 0)


def addresses_of(af: int) -> bytes:
    """Ask for the addresses of a family."""
    return _ADDRESS.pack(af, 0, 0, 0, 0)


def routes_of(af: int, table: Table = Table.ANY, protocol: int = 0) -> bytes:
    """Ask for the routes of a family; a socket with strict checking gets only the table and protocol named."""
    return _ROUTE.pack(af, 0, 0, 0, table, protocol, 0, 0, 0)


def proxies_of(af: int) -> bytes:
    """Ask for the proxy neighbours of a family."""
    return _NEIGHBOUR.pack(af, 0, 0, _NTF_PROXY, 0)


def local_route(network: Network, source: Address | None) -> bytes:
    """Our route `local NETWORK dev lo table local proto 96 src SOURCE`, to add or to delete."""
    base = network.address
    head = _ROUTE.pack(
        family(base), network.prefix, 0, 0, Table.LOCAL, OUR_PROTOCOL, Scope.HOST, RouteType.LOCAL, 0
    )
    src = attribute(_SOURCE, source) if source else b""
    return head + attribute(_DESTINATION, base) + u32(_OUT, LOOPBACK_INDEX) + src


def proxy_neighbour(address: Address, index: int) -> bytes:
    """Our proxy neighbour for an address on the interface of an index, to add or to delete."""
    head = _NEIGHBOUR.pack(family(address), index, 0, _NTF_PROXY, 0)
    return head + attribute(_NDA_DESTINATION, address) + u8(_NDA_PROTOCOL, OUR_PROTOCOL)


# -- answers -----------------------------------------------------------------------------------


def interface(payload: bytes) -> Interface:
    """The interface of an RTM_NEWLINK."""
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    name = string_of(attributes(payload, _LINK.size).get(_IFLA_NAME, b""))
    return Interface(index, name, bool(flags & _UP), bool(flags & _IS_LOOPBACK))


def host_address(payload: bytes, names: Names) -> HostAddress | None:
    """The address of an RTM_NEWADDR, None if it carries none."""
    _, prefix, flags, scope, index = _ADDRESS.unpack_from(payload)
    found = attributes(payload, _ADDRESS.size)
    # On a point-to-point link IFA_ADDRESS is the other end.
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if not address:
        return None
    if _IFA_FLAGS in found:
        flags = number(found[_IFA_FLAGS])
    protocol = number(found.get(_IFA_PROTOCOL, b""))
    return HostAddress(Address(address), prefix, names.get(index, ""), AddressFlag(flags), scope, protocol)


def route(payload: bytes, names: Names) -> Route | None:
    """The route of an RTM_NEWROUTE, None if it is not of IPv4 or IPv6."""
    af, prefix, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(payload)
    bits = {2: 32, 10: 128}.get(af)
    if bits is None:
        return None
    found = attributes(payload, _ROUTE.size)
    base = Address(found.get(_DESTINATION) or bytes(bits // 8))
    hop = found.get(_MULTIPATH, b"")
    out = number(found.get(_OUT, b""))
    gateway = found.get(_GATEWAY)
    if len(hop) >= _NEXT_HOP.size:
        length, _, _, out = _NEXT_HOP.unpack_from(hop)
        gateway = attributes(hop[:length], _NEXT_HOP.size).get(_GATEWAY)
    source = found.get(_SOURCE)
    return Route(
        Network(base, prefix),
        number(found[_TABLE]) if _TABLE in found else table,
        kind,
        protocol,
        names.get(out, ""),
        Address(gateway) if gateway else None,
        Address(source) if source else None,
        number(found.get(_PRIORITY, b"")),
    )


def proxy(payload: bytes, names: Names) -> Proxy | None:
    """The proxy neighbour of an RTM_NEWNEIGH, None if it is an ordinary one."""
    _, index, _, flags, _ = _NEIGHBOUR.unpack_from(payload)
    found = attributes(payload, _NEIGHBOUR.size)
    if not flags & _NTF_PROXY or _NDA_DESTINATION not in found:
        return None
    ours = number(found.get(_NDA_PROTOCOL, b"")) == OUR_PROTOCOL
    return Proxy(Address(found[_NDA_DESTINATION]), names.get(index, ""), ours)


# -- choice ------------------------------------------------------------------------------------


def choose_source(af: int, addresses: Iterable[HostAddress], routes: Iterable[Route]) -> Address | None:
    """The address the host itself would speak from, None if it has no usable one of this family.

    That of the default route with the lowest metric: the source it names, else the first address of its
    interface, rather in the gateway's network and rather not a lone host address, which is often a floating
    one. Without a default route the first global address.
    """
    usable = [a for a in addresses if a.usable and family(a.address) == af]
    usable.sort(key=lambda a: a.prefix == len(a.address) * 8)
    defaults = (r for r in routes if r.default and family(r.network.address) == af)
    for candidate in sorted(defaults, key=lambda r: r.metric):
        if found := _source_of(candidate, usable):
            return found
    return usable[0].address if usable else None


def _source_of(default: Route, usable: Sequence[HostAddress]) -> Address | None:
    if any(a.address == default.source for a in usable):
        return default.source
    near = [a for a in usable if a.interface == default.interface]
    beside = [a for a in near if default.gateway and default.gateway in a.network]
    return next((a.address for a in (*beside, *near)), None)


def _network(address: Address, prefix: int) -> Network:
    shift = len(address) * 8 - prefix
    base = (int.from_bytes(address) >> shift) << shift
    return Network(Address(base.to_bytes(len(address))), prefix)
