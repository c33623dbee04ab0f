"""What one host should hold, and what it does hold: two books in the same terms. Pure.

`Desired` is the sum of the parts compiled from every service; elements that several services share
(an address, a hairpin pair) are counted. `Actual` mirrors the kernel: filled by reading it, kept by
the operations that succeeded, compared with it by the audit. Both answer by key, so that the cost
of a change is the size of the change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from edgeproxy.address import Address, is_ipv4
from edgeproxy.model import Element, Finding, Frontend, RealServer, Reason, SetName, VirtualServer

Socket = tuple[Address, int]
"""Address and port of a real server: its identity under one virtual server."""
ElementKey = tuple[SetName, tuple[object, ...]]
"""A set and the key inside it: what an element is identified by."""


DETOUR_SETS = frozenset({SetName.DETOURS4, SetName.DETOURS6})
Connections = Mapping[Frontend, Mapping[Socket, int]]
"""Connections, active and inactive, per real server; a frontend left out was not read."""


def key_of(element: Element) -> ElementKey:
    """The identity of an element; verdict, data and comment are its value."""
    return (element.set, element.key)


class Target(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One virtual server as the records want it.

    reals: sorted, each address and port once.
    drain: seconds a removed TCP backend may keep its connections.
    serving: backends of UDP that serve, those left out of `reals` included: these keep the flows they have.
    """

    server: VirtualServer
    reals: tuple[RealServer, ...]
    drain: float
    serving: frozenset[Socket] = frozenset()

    @property
    def weights(self) -> dict[Socket, int]:
        """The weight of each real server."""
        return {(real.address, real.port): real.weight for real in self.reals}


class HealthCheck(msgspec.Struct, frozen=True, gc=False):
    """A `healthCheckNodePort` listener: its port and how many ready local addresses it reports."""

    port: int
    local_endpoints: int


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One service's share of the desired state.

    routes: addresses outside every service CIDR that need a local route of their own.
    """

    targets: tuple[Target, ...] = ()
    elements: tuple[Element, ...] = ()
    routes: tuple[Address, ...] = ()
    health_check: HealthCheck | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def momentary(self) -> bool:
        """Whether it depends on more than records and surroundings: on allotted anchors, or on a bug."""
        return any(element.set in DETOUR_SETS for element in self.elements) or any(
            finding.reason is Reason.BUG for finding in self.findings
        )


class Touched(msgspec.Struct, frozen=True):
    """What a change of the desired state may have changed: the planner looks at nothing else."""

    frontends: set[Frontend] = msgspec.field(default_factory=set)
    elements: set[ElementKey] = msgspec.field(default_factory=set)
    routes: set[Address] = msgspec.field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.frontends or self.elements or self.routes)

    def update(self, other: Touched) -> None:
        """Take in the keys of another."""
        self.frontends.update(other.frontends)
        self.elements.update(other.elements)
        self.routes.update(other.routes)


class Desired:
    """The sum of all parts. Claims are settled before: no two parts hold one frontend."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self.remarkable: dict[str, Part] = {}
        """Those parts that have findings or a health check: few, so that looking for them is cheap."""
        self.targets: dict[Frontend, Target] = {}
        self.owners: dict[Frontend, str] = {}
        self.elements: dict[ElementKey, Element] = {}
        self.routes: Counter[Address] = Counter()
        self.ipv6_targets = 0
        """Virtual servers of IPv6 that have real servers: forwarding is needed for them."""
        self._users: Counter[ElementKey] = Counter()
        self._at: Counter[Address] = Counter()

    def serves(self, address: Address) -> bool:
        """Whether any record wants a virtual server at an address."""
        return address in self._at

    def put(self, parts: Mapping[str, Part | None]) -> Touched:
        """Exchange the parts of some services (None takes one away) and tell what that touches.

        All old parts leave before the new ones come, so a frontend can change hands in one call.
        """
        touched = Touched()
        before = {name: self.parts.get(name) for name in parts}
        changed = {name: part for name, part in parts.items() if part != before[name]}
        for name in changed:
            self._take(name, before[name], touched)
        for name, part in changed.items():
            if part is not None:
                self._give(name, part, touched)
                if (old := before[name]) is not None:
                    _spare(touched, old, part)
        return touched

    def _take(self, name: str, part: Part | None, touched: Touched) -> None:
        if part is None:
            return
        del self.parts[name]
        self.remarkable.pop(name, None)
        for target in part.targets:
            frontend = target.server.frontend
            touched.frontends.add(frontend)
            del self.targets[frontend], self.owners[frontend]
            self._at[frontend.address] -= 1
            if not self._at[frontend.address]:
                del self._at[frontend.address]
            self.ipv6_targets -= _is_used_ipv6(target)
        for element in part.elements:
            key = key_of(element)
            touched.elements.add(key)
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self.elements[key]
        for address in part.routes:
            touched.routes.add(address)
            self.routes[address] -= 1
            if not self.routes[address]:
                del self.routes[address]

    def _give(self, name: str, part: Part, touched: Touched) -> None:
        self.parts[name] = part
        if part.findings or part.health_check:
            self.remarkable[name] = part
        for target in part.targets:
            frontend = target.server.frontend
            self.targets[frontend] = target
            self.owners[frontend] = name
            self._at[frontend.address] += 1
            self.ipv6_targets += _is_used_ipv6(target)
            touched.frontends.add(frontend)
        for element in part.elements:
            key = key_of(element)
            self._users[key] += 1
            self.elements[key] = element
            touched.elements.add(key)
        for address in part.routes:
            self.routes[address] += 1
            touched.routes.add(address)


def _spare(touched: Touched, before: Part, part: Part) -> None:
    """What is the same in a service's old and new part is not touched."""
    same = {target.server.frontend: target for target in before.targets}
    touched.frontends.difference_update(
        target.server.frontend for target in part.targets if same.get(target.server.frontend) == target
    )
    known = {key_of(element): element for element in before.elements}
    touched.elements.difference_update(
        key_of(element) for element in part.elements if known.get(key_of(element)) == element
    )
    touched.routes.difference_update(set(before.routes) & set(part.routes))


def _is_used_ipv6(target: Target) -> bool:
    return bool(target.reals) and not is_ipv4(target.server.frontend.address)


class Drain(msgspec.Struct, frozen=True, gc=False):
    """A real server on its way out: the connections it has may go on until the deadline."""

    frontend: Frontend
    real: Socket


class Actual:
    """The mirror of what the kernel holds of ours.

    reals: weight of each real server; -1 where its other attributes are not what we write.
    foreign: virtual servers that somebody else made; never touched.
    drains: each with its deadline in seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self.servers: dict[Frontend, VirtualServer] = {}
        self.reals: dict[Frontend, dict[Socket, int]] = {}
        self.foreign: set[Frontend] = set()
        self.elements: dict[ElementKey, Element] = {}
        self.drains: dict[Drain, float] = {}
        self.routes: set[Address] = set()
        self._at: Counter[Address] = Counter()

    def set_server(self, server: VirtualServer) -> None:
        """Note a virtual server of ours, or its new attributes; a new one has no real servers."""
        frontend = server.frontend
        if frontend not in self.servers:
            self._at[frontend.address] += 1
            self.reals[frontend] = {}
        self.servers[frontend] = server

    def remove_real(self, frontend: Frontend, socket: Socket) -> None:
        """Forget a real server; an unknown one is no error."""
        self.reals.get(frontend, {}).pop(socket, None)

    def remove_server(self, frontend: Frontend) -> None:
        """Forget a virtual server and its real servers; an unknown one is no error."""
        if self.servers.pop(frontend, None) is None:
            return
        del self.reals[frontend]
        self._at[frontend.address] -= 1
        if not self._at[frontend.address]:
            del self._at[frontend.address]

    def forget_servers(self) -> None:
        """Empty the part that mirrors IPVS, before it is read anew."""
        self.servers.clear()
        self.reals.clear()
        self.foreign.clear()
        self._at.clear()

    def serves_beyond(self, address: Address, leaving: int = 0) -> bool:
        """Whether more than `leaving` virtual servers of ours, draining ones included, are there."""
        return self._at[address] > leaving

    def everything(self) -> Touched:
        """All keys held, those nobody wants included."""
        return Touched(set(self.servers), set(self.elements), set(self.routes))


def differing(desired: Desired, actual: Actual) -> Touched:
    """The keys of which the books do not say the same; drains and other people's virtual servers always count."""
    servers, reals, elements = actual.servers, actual.reals, actual.elements
    touched = Touched(
        {f for f, t in desired.targets.items() if servers.get(f) != t.server or reals[f] != t.weights},
        {key for key, element in desired.elements.items() if elements.get(key) != element},
        actual.routes ^ desired.routes.keys(),
    )
    touched.frontends.update(frontend for frontend in servers if frontend not in desired.targets)
    touched.frontends.update(drain.frontend for drain in actual.drains)
    touched.elements.update(key for key in elements if key not in desired.elements)
    touched.elements.update(key for frontend in actual.foreign for key in companions(frontend))
    return touched


def frontend_of(key: ElementKey) -> Frontend | None:
    """The virtual server that an element of the register stands for; None for other sets."""
    if key[0] not in (SetName.FRONTENDS4, SetName.FRONTENDS6):
        return None
    return Frontend(*key[1])  # type: ignore[arg-type]  # the register's key is (address, protocol, port)


ADDRESS_SETS = frozenset({SetName.ADDRESSES4, SetName.ADDRESSES6, SetName.UNANSWERED})
"""Sets of addresses; their elements stay as long as a virtual server is there, draining or not."""


def companions(frontend: Frontend) -> tuple[ElementKey, ...]:
    """The elements that stay as long as the virtual server: its register entry and those of its address."""
    key, address = (frontend.address, frontend.protocol, frontend.port), (frontend.address,)
    if is_ipv4(frontend.address):
        return (
            (SetName.FRONTENDS4, key),
            (SetName.ADDRESSES4, address),
            (SetName.UNANSWERED, address),
        )
    return ((SetName.FRONTENDS6, key), (SetName.ADDRESSES6, address))
