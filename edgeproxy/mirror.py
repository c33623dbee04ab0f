"""Reads the kernel into the book of actual state and tells what differs from what was thought.

At start the book is empty, everything is read and differs; at an audit usually nothing does. IPVS tells
nobody of its changes, so an audit has to look at every virtual server: it looks at some of them each
time, so that the cost of an idle host does not grow with its services.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edgeproxy.address import Network
from edgeproxy.books import Actual, Connections, Drain, Socket, Touched, companions, key_of
from edgeproxy.execution import DRAIN_SETS, Wires, drain_of
from edgeproxy.kernel.ipvs_entries import DISTORTED, VirtualServerEntry, VirtualServerState, Weights
from edgeproxy.kernel.nft_sets import SETS
from edgeproxy.model import Frontend, VirtualServer

COUNT_SLICE = 64
CHECK_SLICE = 32
"""Virtual servers compared in one step: a few milliseconds."""


class Mirror:
    """The kernel's side of one host.

    anchors: every virtual server on one of these networks is ours.
    """

    def __init__(
        self, wires: Wires, actual: Actual, anchors: Iterable[Network], clock: Callable[[], float]
    ) -> None:
        self._wires = wires
        self._actual = actual
        self._anchors = tuple(anchors)
        self._clock = clock
        self._kernel_drains: frozenset[Drain] = frozenset()
        self._unchecked: list[Frontend] = []

    def read_elements(self) -> Touched:
        """Read every set that records fill, and the drains with their deadlines.

        Raises:
            FrameMissingError: a set is not there.
        """
        touched = Touched()
        now = self._clock()
        found = {}
        drains = {}
        for name in SETS:
            for held in self._wires.nft.dump(name):
                if name in DRAIN_SETS:
                    drains[drain_of(held.element)] = now + (held.remaining or 0.0)
                else:
                    found[key_of(held.element)] = held.element
        known = self._actual.elements
        touched.elements.update(key for key, element in found.items() if known.get(key) != element)
        touched.elements.update(known.keys() - found.keys())
        touched.frontends.update(drain.frontend for drain in drains.keys() - self._actual.drains.keys())
        self._actual.elements.clear()
        self._actual.elements.update(found)
        self._kernel_drains = frozenset(drains)
        self._actual.drains.update(drains)
        return touched

    def lost_drains(self) -> dict[Drain, float]:
        """Drains whose element somebody deleted, with the seconds they have left.

        Those that are over have expired, which is as it should be: `settle` ends them.
        """
        now = self._clock()
        return {
            drain: deadline - now
            for drain, deadline in self._actual.drains.items()
            if drain not in self._kernel_drains and deadline > now
        }

    def read_servers(self, owned: frozenset[Frontend]) -> Iterator[None]:
        """Read all of IPVS in place of what the book says of it, in slices. Nothing may write meanwhile.

        owned: frontends that are ours beside those in the register.
        """
        self._actual.forget_servers()
        for part in self._wires.ipvs.read_in_slices():
            for server, weights in part:
                frontend = server.frontend
                if frontend is not None:
                    self._judge(frontend, server, weights, owned)
            yield

    def check_servers(self) -> Iterator[Touched]:
        """Compare some virtual servers with the kernel; yields what differed, for ever if it is let.

        The next call goes on where this one was left; a cycle takes in every server of ours and
        every foreign one in our way, and ends the generator. A sync may run between two steps.
        """
        if not self._unchecked:
            self._unchecked = [*self._actual.servers, *self._actual.foreign]
        while self._unchecked:
            part, self._unchecked = self._unchecked[:CHECK_SLICE], self._unchecked[CHECK_SLICE:]
            states = self._wires.ipvs.dump_frontends(part)
            touched = Touched()
            for frontend, state in states.items():
                if self._judge(frontend, state.server, state.weights, frozenset()):
                    touched.frontends.add(frontend)
            touched.update(self._forget({frontend for frontend in part if frontend not in states}))
            yield touched

    def _forget(self, gone: Iterable[Frontend]) -> Touched:
        """Note that virtual servers are not in the kernel (any more)."""
        touched = Touched()
        for frontend in gone:
            if frontend in self._actual.foreign:
                self._actual.foreign.discard(frontend)
                touched.elements.update(companions(frontend))
            elif frontend not in self._actual.servers:
                continue
            self._actual.remove_server(frontend)
            touched.frontends.add(frontend)
        return touched

    def _judge(
        self, frontend: Frontend, entry: VirtualServerEntry, weights: Weights, owned: frozenset[Frontend]
    ) -> bool:
        """Note one virtual server; true if it was thought to be different."""
        actual = self._actual
        if not self._is_ours(frontend, owned):
            new = frontend not in actual.foreign
            actual.foreign.add(frontend)
            return new
        actual.foreign.discard(frontend)
        server = _seen_server(frontend, entry)
        if actual.servers.get(frontend) == server and actual.reals[frontend] == weights:
            return False
        actual.set_server(server)
        actual.reals[frontend] = weights
        return True

    def _is_ours(self, frontend: Frontend, owned: frozenset[Frontend]) -> bool:
        return (
            frontend in self._actual.servers
            or frontend in owned
            or companions(frontend)[0] in self._actual.elements
            or any(frontend.address in network for network in self._anchors)
        )

    def count_connections(self, frontends: Iterable[Frontend]) -> Iterator[Connections]:
        """Connections, active and inactive, of every real server of some frontends; in slices."""
        wanted = list(frontends)
        for start in range(0, len(wanted), COUNT_SLICE):
            part = wanted[start : start + COUNT_SLICE]
            states = self._wires.ipvs.dump_frontends(part)
            yield {frontend: _counts(states.get(frontend)) for frontend in part}


def _counts(state: VirtualServerState | None) -> dict[Socket, int]:
    if state is None:
        return {}
    return {(entry.address, entry.port): entry.active + entry.inactive for entry in state.destinations}


def _seen_server(frontend: Frontend, entry: VirtualServerEntry) -> VirtualServer:
    server = entry.virtual_server
    if server is None or not entry.plain:
        # No flags that anybody wants.
        return VirtualServer(frontend, entry.scheduler, flags=DISTORTED)
    return server
