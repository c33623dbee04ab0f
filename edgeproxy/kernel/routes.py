"""The host's addresses and routes, and the few local routes and proxy neighbours that are ours.

Service addresses become local to the host by routes `local CIDR dev lo table local src ADDRESS`.
Ours carry routing protocol number 96; what carries another number is read and never changed.

Errors:

    RouteError      the kernel refused a question, or access to it
"""

from __future__ import annotations

import enum
import errno
import socket
from collections.abc import Iterator, Sequence

import msgspec

from edgeproxy.address import Address, Network, family, text
from edgeproxy.kernel import routes_codec as codec
from edgeproxy.kernel.netlink import Answer, Flag, Message, NetlinkError, OverrunError, answer, message
from edgeproxy.kernel.netlink_socket import NETLINK_ROUTE, NetlinkSocket, NetlinkUser
from edgeproxy.kernel.notices import ignore, port_id, strict
from edgeproxy.kernel.routes_codec import HostAddress, Interface, Kind, Proxy, Route, Table

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_PLAIN = Flag(0)
_GROUPS = (1, 5, 7, 9, 11)  # RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE


class RouteError(Exception):
    """The kernel refused a question about addresses or routes."""


class PutRoute(msgspec.Struct, frozen=True, order=True, gc=False):
    """Make a network local, its answers coming from `source` (None: the address called)."""

    network: Network
    source: Address | None

    def __str__(self) -> str:
        return f"route local {self.network}" + (f" src {text(self.source)}" if self.source else "")


class DeleteRoute(msgspec.Struct, frozen=True, order=True, gc=False):
    """Take our local route for a network away."""

    network: Network

    def __str__(self) -> str:
        return f"no route local {self.network}"


class PutProxy(msgspec.Struct, frozen=True, order=True, gc=False):
    """Answer neighbour requests for an address on an interface; takes effect where its `proxy_ndp` is 1."""

    address: Address
    interface: str

    def __str__(self) -> str:
        return f"proxy neighbour {text(self.address)} dev {self.interface}"


class DeleteProxy(msgspec.Struct, frozen=True, order=True, gc=False):
    """Stop answering for an address on an interface."""

    address: Address
    interface: str

    def __str__(self) -> str:
        return f"no proxy neighbour {text(self.address)} dev {self.interface}"


RouteOperation = PutRoute | DeleteRoute | PutProxy | DeleteProxy


class State(enum.Enum):
    """How an operation ended."""

    DONE = "done"
    WAITING = "waiting"
    """The source is no settled address of this host (yet): repeat on the next address event, after DAD."""
    LOOPBACK_DOWN = "loopback down"
    """`lo` is down in this network namespace: no local route works; repeat when it is up."""
    TAKEN = "taken"
    """A route for the same network belongs to the host or to another program; it was left alone."""
    REFUSED = "refused"
    """Any other refusal, see `reason`."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of an operation. `reason`: one sentence, "" when done."""

    operation: RouteOperation
    state: State
    reason: str = ""


class HostChange(enum.Enum):
    """What kind of thing changed on the host."""

    LINK = "link"
    ADDRESS = "address"
    ROUTE = "route"


class Routes(NetlinkUser):
    """Addresses, routes and interfaces of the calling thread's network namespace. Methods do not wait.

    Raises:
        OSError: no netlink.
    """

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE, buffer=1 << 20)
        self.port_id = port_id(self._netlink)
        strict(self._netlink)

    # -- reading -------------------------------------------------------------------------------

    def interfaces(self) -> list[Interface]:
        """All interfaces.

        Raises:
            RouteError: the kernel refused; so do all methods that read.
        """
        return [codec.interface(payload) for payload in self._dump(Kind.GET_LINK, codec.links())]

    def loopback_up(self) -> bool:
        """Whether `lo` is up; while it is not, nothing local is reachable."""
        return any(interface.loopback and interface.up for interface in self.interfaces())

    def addresses(self) -> list[HostAddress]:
        """The addresses of all interfaces, IPv4 first, in the kernel's order."""
        names = self._names()
        payloads = (p for af in _FAMILIES for p in self._dump(Kind.GET_ADDRESS, codec.addresses_of(af)))
        return [found for payload in payloads if (found := codec.host_address(payload, names))]

    def routes(self, table: Table = Table.MAIN) -> list[Route]:
        """The routes of a table, every program's. The main table of a BGP speaker can be large."""
        return [found for af in _FAMILIES for found in self._routes(af, table)]

    def own(self) -> list[Route]:
        """Our own local routes."""
        return [
            found
            for af in _FAMILIES
            for found in self._routes(af, Table.LOCAL, codec.OUR_PROTOCOL)
            if found.ours
        ]

    def proxies(self) -> list[Proxy]:
        """All proxy neighbours of IPv6; `ours` tells whose."""
        names = self._names()
        payloads = self._dump(Kind.GET_NEIGHBOUR, codec.proxies_of(socket.AF_INET6))
        return [found for payload in payloads if (found := codec.proxy(payload, names))]

    def host_source(self, af: int) -> Address | None:
        """The address this host speaks from (see :func:`~edgeproxy.kernel.routes_codec.choose_source`)."""
        return codec.choose_source(af, self.addresses(), self._routes(af, Table.MAIN))

    def _routes(self, af: int, table: Table, protocol: int = 0) -> Iterator[Route]:
        names = self._names()
        for payload in self._dump(Kind.GET_ROUTE, codec.routes_of(af, table, protocol)):
            found = codec.route(payload, names)
            if found and found.table == table and protocol in (0, found.protocol):
                yield found

    def _names(self) -> dict[int, str]:
        return {interface.index: interface.name for interface in self.interfaces()}

    # -- changing ------------------------------------------------------------------------------

    def apply(self, operations: Sequence[RouteOperation]) -> tuple[Outcome, ...]:
        """Carry out operations in order, each by itself; one outcome each.

        Putting what is there and deleting what is not there is done.

        Raises:
            RouteError: a look at what is there, which some refusals need, was itself refused.
        """
        return tuple(self._apply(operation) for operation in operations)

    def _apply(self, operation: RouteOperation) -> Outcome:
        match operation:
            case PutRoute(network, source):
                return self._put(operation, network, source)
            case DeleteRoute(network):
                payload = codec.local_route(network, None)
                return _outcome(
                    operation, self._change(Kind.DELETE_ROUTE, payload), errno.ESRCH, errno.ENOENT
                )
            case PutProxy(address, interface) | DeleteProxy(address, interface):
                return self._proxy(operation, address, interface)

    def _put(self, operation: PutRoute, network: Network, source: Address | None) -> Outcome:
        payload = codec.local_route(network, source)
        said = self._change(Kind.NEW_ROUTE, payload, Flag.CREATE | Flag.EXCLUSIVE)
        if said.errno == errno.EEXIST:
            same = [r for r in self._routes(family(network.address), Table.LOCAL) if r.network == network]
            # Replacing hits the first of several routes: only where there is no other's.
            if not all(route.ours for route in same):
                other = next(route for route in same if not route.ours)
                return Outcome(
                    operation, State.TAKEN, f"{network} is local already, by another route: {other}"
                )
            if any(route.source == source for route in same):
                return Outcome(operation, State.DONE)
            said = self._change(Kind.NEW_ROUTE, payload, Flag.CREATE | Flag.REPLACE)
        if said.errno == errno.EINVAL and source is not None and not self._settled(source):
            why = f"{text(source)} is no settled address of this host, it can't be the source of a route yet"
            return Outcome(operation, State.WAITING, why)
        if said.errno == errno.ENETDOWN or (said.errno and not self.loopback_up()):
            return Outcome(operation, State.LOOPBACK_DOWN, "interface lo is down: ip link set lo up")
        return _outcome(operation, said)

    def _settled(self, address: Address) -> bool:
        unsettled = codec.AddressFlag.TENTATIVE | codec.AddressFlag.DAD_FAILED
        return any(a.address == address and not a.flags & unsettled for a in self.addresses())

    def _proxy(self, operation: PutProxy | DeleteProxy, address: Address, interface: str) -> Outcome:
        put = isinstance(operation, PutProxy)
        index = next((index for index, name in self._names().items() if name == interface), None)
        if index is None:
            # With an interface its entries go, too.
            state = State.REFUSED if put else State.DONE
            return Outcome(operation, state, f"there is no interface {interface}" if put else "")
        there = [p for p in self.proxies() if (p.address, p.interface) == (address, interface)]
        if any(not p.ours for p in there):
            return Outcome(operation, State.TAKEN, f"a proxy neighbour {there[0]} of another program exists")
        if put == bool(there):
            return Outcome(operation, State.DONE)
        payload = codec.proxy_neighbour(address, index)
        if put:
            return _outcome(operation, self._change(Kind.NEW_NEIGHBOUR, payload, Flag.CREATE), errno.EEXIST)
        return _outcome(operation, self._change(Kind.DELETE_NEIGHBOUR, payload), errno.ENOENT)

    # -- wire ----------------------------------------------------------------------------------

    def _change(self, kind: Kind, payload: bytes, flags: Flag = _PLAIN) -> Answer:
        for reply in self._exchange(kind, payload, Flag.ACK | flags):
            if (said := answer(reply)) is not None:
                return said
        raise RouteError(f"{kind.name}: the kernel did not answer")

    def _dump(self, kind: Kind, payload: bytes) -> list[bytes]:
        for _ in range(5):
            replies = self._exchange(kind, payload, Flag.DUMP)
            # A list that changed while it was read may lack entries; a busy one is better than none.
            if not any(reply.flags & Flag.DUMP_INTERRUPTED for reply in replies):
                break
        found: list[bytes] = []
        for reply in replies:
            said = answer(reply)
            if said is None:
                found.append(reply.payload)
            elif said.errno not in (0, errno.ENOENT):  # ENOENT: no such table, so no routes
                raise RouteError(f"{kind.name}: {said}")
        return found

    def _exchange(self, kind: Kind, payload: bytes, flags: Flag) -> list[Message]:
        (sequence,) = self._netlink.sequences()
        try:
            return self._netlink.exchange(message(kind, Flag.REQUEST | flags, sequence, payload), (sequence,))
        except (NetlinkError, OSError) as error:
            raise RouteError(f"{kind.name}: {error}") from error


class HostWatch(NetlinkUser):
    """A subscription to changes of links, addresses and routes, silent about those `routes` makes itself.

    Raises:
        OSError: no netlink.
    """

    def __init__(self, routes: Routes) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE, groups=_GROUPS)
        ignore(self._netlink, routes.port_id)

    def fileno(self) -> int:
        """The descriptor, for `loop.add_reader`."""
        return self._netlink.fileno()

    def read(self) -> frozenset[HostChange]:
        """What has changed since the last read; all kinds when notices were lost. Never blocks."""
        changed: set[HostChange] = set()
        while True:
            try:
                received = self._netlink.receive()
            except OverrunError:
                changed.update(HostChange)
                continue
            if not received:
                return frozenset(changed)
            changed.update(_CHANGES[notice.type] for notice in received if notice.type in _CHANGES)


_CHANGES: dict[int, HostChange] = {
    Kind.NEW_LINK: HostChange.LINK,
    Kind.DELETE_LINK: HostChange.LINK,
    Kind.NEW_ADDRESS: HostChange.ADDRESS,
    Kind.DELETE_ADDRESS: HostChange.ADDRESS,
    Kind.NEW_ROUTE: HostChange.ROUTE,
    Kind.DELETE_ROUTE: HostChange.ROUTE,
}


def _outcome(operation: RouteOperation, said: Answer, *fine: int) -> Outcome:
    if said.errno == 0 or said.errno in fine:
        return Outcome(operation, State.DONE)
    hint = "; edgeproxy needs CAP_NET_ADMIN" if said.errno == errno.EPERM else ""
    return Outcome(operation, State.REFUSED, f"{said}{hint}")
