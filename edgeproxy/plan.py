"""From two states to the operations between them.

A plan is a value: it can be printed, counted, compared and run. Its order of execution keeps every
crash harmless::

    routes come, elements come     the register knows a virtual server before it exists
    drain deadlines come           a real server at weight 0 always has one, or is idle
    IPVS operations
    stale conntracks go            first IPVS, then conntrack (design: flows through DNAT)
    elements go, routes go         the register forgets a virtual server after it is gone

Drains are derived, never remembered: a TCP real server that the records no longer want drops to
weight 0 and stays until it is idle or its deadline, an element with a timeout in the kernel, is over.
So does one of UDP whose endpoint still serves (it terminates, or a hint or policy leads elsewhere), until it
serves no more; all others go at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from edgeproxy.address import Address, text, with_port
from edgeproxy.books import (
    ADDRESS_SETS,
    Actual,
    Connections,
    Desired,
    Drain,
    ElementKey,
    Socket,
    Target,
    Touched,
    companions,
    frontend_of,
    key_of,
)
from edgeproxy.kernel.ipvs_operations import (
    AddReal,
    AddVirtual,
    EditReal,
    EditVirtual,
    Operation,
    RemoveReal,
    RemoveVirtual,
)
from edgeproxy.model import Element, Frontend, Protocol, RealServer, SetName

HAIRPIN_SETS = frozenset({SetName.HAIRPIN4, SetName.HAIRPIN6})
"""Their elements are shared, so that nobody knows which of them a held service needs."""


LINGER = 7 * 86400.0
"""Seconds an endpoint of UDP that still serves may keep its flows: as good as for ever."""


class Stale(msgspec.Struct, frozen=True, gc=False):
    """Flows to forget: those through `frontend` that were bound to `real`, a backend that left.

    real None: flows that were let through while the frontend had no backend at all.
    """

    frontend: Frontend
    real: Socket | None


class Held(msgspec.Struct, frozen=True):
    """What must not shrink: objects of services whose record cannot be read (see `catalog`)."""

    services: frozenset[str] = frozenset()
    frontends: frozenset[Frontend] = frozenset()


class Plan(msgspec.Struct):
    """Operations by wire, in the order the module's header gives.

    replaced: old values of elements that come back changed in `add_elements`, and ranges nobody wants,
        which new ones may overlap.
    add_drains: with their duration in seconds.
    fading: real servers set to weight 0 that seemed idle; to be settled once that is done.
    """

    add_routes: list[Address] = msgspec.field(default_factory=list)
    add_elements: list[Element] = msgspec.field(default_factory=list)
    replaced: list[Element] = msgspec.field(default_factory=list)
    add_drains: list[tuple[Drain, float]] = msgspec.field(default_factory=list)
    ipvs: list[Operation] = msgspec.field(default_factory=list)
    stale: list[Stale] = msgspec.field(default_factory=list)
    remove_drains: list[Drain] = msgspec.field(default_factory=list)
    remove_elements: list[Element] = msgspec.field(default_factory=list)
    remove_routes: list[Address] = msgspec.field(default_factory=list)
    fading: list[tuple[Drain, float]] = msgspec.field(default_factory=list)

    def __len__(self) -> int:
        """How many things would be written to the kernel."""
        return (
            len(self.add_routes)
            + len(self.add_elements)
            + len(self.replaced)
            + len(self.add_drains)
            + len(self.ipvs)
            + len(self.remove_drains)
            + len(self.remove_elements)
            + len(self.remove_routes)
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """One line an operation, for people."""
        yield from (f"add route to {text(address)}" for address in self.add_routes)
        yield from (f"replace element of {e.set}" for e in self.replaced)
        yield from (f"add element to {e.set}" for e in self.add_elements)
        yield from (f"drain {with_port(*d.real)} of {d.frontend} for {s:g}s" for d, s in self.add_drains)
        yield from map(str, self.ipvs)
        yield from (f"end drain of {with_port(*d.real)} of {d.frontend}" for d in self.remove_drains)
        yield from (f"remove element from {e.set}" for e in self.remove_elements)


def leaving(touched: Touched, desired: Desired, actual: Actual) -> list[Frontend]:
    """Frontends from which real servers go that may drain: their connections should be counted before planning."""
    found = []
    for frontend in touched.frontends:
        reals = actual.reals.get(frontend)
        target = desired.targets.get(frontend)
        if not reals or not (frontend.protocol is Protocol.TCP or (target and target.serving)):
            continue
        wanted = {(real.address, real.port) for real in target.reals} if target else set()
        if not wanted.issuperset(reals):
            found.append(frontend)
    return found


class Planner:
    """Makes one plan.

    drain: seconds a drain lasts where no record says so any more.
    adopting: the state was read from a kernel that others may have left behind; a real server at
        weight 0 that nobody wants and that has no deadline left is over, not about to start.
    """

    def __init__(
        self, desired: Desired, actual: Actual, drain: float, held: Held, *, adopting: bool = False
    ) -> None:
        self._desired = desired
        self._actual = actual
        self._drain = drain
        self._held = held
        self._adopting = adopting
        self._plan = Plan()
        self._gone: set[Frontend] = set()
        self._gone_at: Counter[Address] = Counter()

    def reconcile(self, touched: Touched, connections: Connections, drains: Mapping[Frontend, float]) -> Plan:
        """Plan whatever is needed for the touched keys.

        drains: seconds of drain of frontends that were wanted until now.
        """
        for frontend in sorted(touched.frontends):
            if frontend in self._actual.foreign:
                continue
            target = self._desired.targets.get(frontend)
            if target is None:
                seconds = drains.get(frontend, self._drain)
                self._close(frontend, connections.get(frontend), seconds)
            elif frontend in self._actual.servers:
                self._adjust(target, connections.get(frontend))
            else:
                self._open(target)
        for key in touched.elements:
            self._element(key)
        for address in touched.routes:
            self._route(address)
        return self._plan

    def settle(self, drains: Mapping[Drain, float], connections: Connections, now: float) -> Plan:
        """End drains that are idle or over; give those that turned out busy their deadline.

        drains: seconds each may last, for those that have no deadline yet.
        """
        for drain, seconds in drains.items():
            reals = self._actual.reals.get(drain.frontend, {})
            deadline = self._actual.drains.get(drain)
            if drain.real not in reals:
                if deadline is not None:
                    self._plan.remove_drains.append(drain)
                continue
            idle = connections.get(drain.frontend, {}).get(drain.real) == 0
            if idle or (deadline is not None and now >= deadline):
                why = "idle" if idle else "drain deadline is over"
                self._remove_real(drain.frontend, drain.real, why)
                if deadline is not None:
                    self._plan.remove_drains.append(drain)
            elif deadline is None:
                self._plan.add_drains.append((drain, seconds))
        self._close_emptied({drain.frontend for drain in drains})
        return self._plan

    def _open(self, target: Target) -> None:
        frontend = target.server.frontend
        self._plan.ipvs.append(AddVirtual(target.server, reason="wanted by its record"))
        self._plan.ipvs.extend(AddReal(frontend, real, reason="new endpoint") for real in target.reals)
        if frontend.protocol is Protocol.UDP:
            self._plan.stale.append(Stale(frontend, None))

    def _adjust(self, target: Target, connections: Mapping[Socket, int] | None) -> None:
        frontend = target.server.frontend
        if self._actual.servers[frontend] != target.server:
            self._plan.ipvs.append(EditVirtual(target.server, reason="attributes changed"))
        reals, wanted = self._actual.reals[frontend], target.weights
        draining = bool(self._actual.drains)
        if not reals and target.reals and frontend.protocol is Protocol.UDP:
            self._plan.stale.append(Stale(frontend, None))
        for real in target.reals:
            weight = reals.get((real.address, real.port))
            if weight != real.weight or draining:
                self._want(frontend, real, weight)
        if frontend not in self._held.frontends:
            for socket, weight in reals.items():
                if socket not in wanted:
                    self._leave(frontend, socket, weight, connections, target.drain, target.serving)

    def _want(self, frontend: Frontend, real: RealServer, weight: int | None) -> None:
        if weight is None:
            self._plan.ipvs.append(AddReal(frontend, real, reason="new endpoint"))
            return
        if weight != real.weight:
            self._plan.ipvs.append(EditReal(frontend, real, reason=f"weight was {weight}"))
            if real.weight == 0 and frontend.protocol is Protocol.TCP:
                self._plan.stale.append(Stale(frontend, (real.address, real.port)))
        drain = Drain(frontend, (real.address, real.port))
        if drain in self._actual.drains:
            self._plan.remove_drains.append(drain)

    def _leave(
        self,
        frontend: Frontend,
        socket: Socket,
        weight: int,
        connections: Mapping[Socket, int] | None,
        seconds: float,
        serving: frozenset[Socket] = frozenset(),
    ) -> None:
        """A real server is no longer wanted: UDP and SCTP go at once, TCP and UDP that still serves drain."""
        drain = Drain(frontend, socket)
        draining = drain in self._actual.drains
        lingers = socket in serving
        drains = lingers or (frontend.protocol is Protocol.TCP and (draining or seconds > 0))
        over = self._adopting and weight == 0 and not draining
        if not drains or over:
            self._remove_real(frontend, socket, "no longer an endpoint")
            if draining:
                self._plan.remove_drains.append(drain)
            return
        if weight:
            down = RealServer(*socket, weight=0)
            self._plan.ipvs.append(EditReal(frontend, down, reason="no longer an endpoint: draining"))
            if not lingers:
                self._plan.stale.append(Stale(frontend, socket))
        if draining:
            return
        seconds = LINGER if lingers else seconds
        if connections is not None and connections.get(socket) == 0:
            self._plan.fading.append((drain, seconds))
        else:
            self._plan.add_drains.append((drain, seconds))

    def _remove_real(self, frontend: Frontend, socket: Socket, why: str) -> None:
        self._plan.ipvs.append(RemoveReal(frontend, *socket, reason=why))
        self._plan.stale.append(Stale(frontend, socket))

    def _close(self, frontend: Frontend, connections: Mapping[Socket, int] | None, seconds: float) -> None:
        """A virtual server is no longer wanted; it stays while real servers of it drain."""
        reals = self._actual.reals.get(frontend)
        if reals is None or frontend in self._held.frontends:
            return
        before = len(self._plan.ipvs)
        for socket, weight in reals.items():
            self._leave(frontend, socket, weight, connections, seconds)
        removed = [op for op in self._plan.ipvs[before:] if isinstance(op, RemoveReal)]
        if len(removed) == len(reals):
            del self._plan.ipvs[before:]
            self._remove_server(frontend)

    def _close_emptied(self, frontends: Iterable[Frontend]) -> None:
        """Take away virtual servers that nobody wants and that have just lost their last real server."""
        going = Counter(op.frontend for op in self._plan.ipvs if isinstance(op, RemoveReal))
        for frontend in frontends:
            reals = self._actual.reals.get(frontend)
            if frontend in self._desired.targets or reals is None or going[frontend] < len(reals):
                continue
            self._plan.ipvs = [
                op for op in self._plan.ipvs if not (isinstance(op, RemoveReal) and op.frontend == frontend)
            ]
            self._remove_server(frontend)
            for key in companions(frontend):
                self._element(key)
            self._route(frontend.address)

    def _remove_server(self, frontend: Frontend) -> None:
        self._plan.ipvs.append(RemoveVirtual(frontend, reason="no longer wanted by any record"))
        self._gone.add(frontend)
        self._gone_at[frontend.address] += 1

    def _element(self, key: ElementKey) -> None:
        wanted, found = self._desired.elements.get(key), self._actual.elements.get(key)
        if wanted is not None and self._taken(key):
            wanted = None
        if wanted is not None:
            if wanted == found:
                return
            self._plan.add_elements.append(wanted)
            if found is not None:
                self._plan.replaced.append(found)
        elif found is not None and not self._needed(found):
            (self._plan.replaced if found.until else self._plan.remove_elements).append(found)

    def _taken(self, key: ElementKey) -> bool:
        """Whether somebody else's virtual server is there: it must not enter the register."""
        return bool(self._actual.foreign) and frontend_of(key) in self._actual.foreign

    def _needed(self, element: Element) -> bool:
        """Whether an element that no record wants must stay, for drains or a held service."""
        if self._held.services and (element.comment in self._held.services or element.set in HAIRPIN_SETS):
            return True
        frontend = frontend_of(key_of(element))
        if frontend is not None:
            return frontend in self._actual.servers and frontend not in self._gone
        if element.set in ADDRESS_SETS:
            address = element.key[0]
            return isinstance(address, bytes) and self._lingers(address)
        return False

    def _lingers(self, address: Address) -> bool:
        """Whether only draining or held virtual servers are left at an address.

        Where a record wants one, the records decide about the address, too: the host may have come to own it.
        """
        occupied = self._actual.serves_beyond(address, self._gone_at[address])
        return occupied and not self._desired.serves(address)

    def _route(self, address: Address) -> None:
        wanted, found = address in self._desired.routes, address in self._actual.routes
        if wanted and not found:
            self._plan.add_routes.append(address)
        elif found and not wanted and not self._lingers(address):
            self._plan.remove_routes.append(address)
