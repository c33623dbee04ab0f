"""The local routes that deliver service addresses to this host.

One route per service CIDR and anchor network, one per address outside them; each names the address
that host processes should speak from (design: section 7, 4). Routes that are not ours are read, never changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeproxy.address import Address, Network
from edgeproxy.kernel.routes import DeleteRoute, PutRoute, RouteOperation, Routes, State
from edgeproxy.model import Finding, Reason
from edgeproxy.surroundings import Surroundings


class LocalRoutes:
    """Our local routes. `changes` counts routes written or deleted since the start."""

    def __init__(self, routes: Routes, surroundings: Surroundings) -> None:
        self._routes = routes
        self._surroundings = surroundings
        self._own: dict[Network, Address | None] = {}
        self._troubles: dict[Network, str] = {}
        self.changes = 0

    def read(self) -> set[Address]:
        """Read our routes from the kernel; answers the single addresses among them.

        Raises:
            RouteError: the kernel refused; so do all methods here.
        """
        self._own = {route.network: route.source for route in self._routes.own()}
        base = set(self._surroundings.local_networks())
        return {network.address for network in self._own if network not in base}

    def disturbed(self) -> bool:
        """Read our routes again; whether somebody else has deleted or changed one since."""
        before = self._own
        self.read()
        return self._own != before

    def ensure(self, surroundings: Surroundings, addresses: Iterable[Address]) -> frozenset[Address]:
        """Make every route exist with its proper source, and those that nobody wants vanish.

        Answers the single addresses that had no route until now.
        """
        self._surroundings = surroundings
        singles = {_single(address) for address in addresses}
        lacking = singles - self._own.keys()
        wanted = [*surroundings.local_networks(), *singles]
        known = self._own.keys() | self._troubles.keys()
        self._apply(DeleteRoute(network) for network in sorted(known - set(wanted)))
        self.add(wanted)
        return frozenset(network.address for network in lacking & self._own.keys())

    def add_addresses(self, addresses: Iterable[Address]) -> None:
        """Make addresses local that lie in no service CIDR."""
        self.add(map(_single, addresses))

    def add(self, networks: Iterable[Network]) -> None:
        """Make networks local."""
        puts = (PutRoute(n, self._surroundings.source_for(n.address)) for n in networks)
        self._apply(put for put in puts if self._own.get(put.network, b"") != put.source)

    def remove_addresses(self, addresses: Iterable[Address]) -> None:
        """Stop delivering addresses."""
        self._apply(DeleteRoute(_single(address)) for address in addresses)

    def findings(self) -> tuple[Finding, ...]:
        """What stands in the way of a route."""
        return tuple(Finding("", 0, str(n), Reason.ROUTE, why) for n, why in sorted(self._troubles.items()))

    def _apply(self, operations: Iterable[RouteOperation]) -> None:
        for outcome in self._routes.apply(list(operations)):
            operation = outcome.operation
            if isinstance(operation, PutRoute | DeleteRoute):
                self._troubles.pop(operation.network, None)
                if outcome.state is not State.DONE:
                    self._troubles[operation.network] = outcome.reason
                    continue
                self.changes += 1
            if isinstance(operation, PutRoute):
                self._own[operation.network] = operation.source
            elif isinstance(operation, DeleteRoute):
                self._own.pop(operation.network, None)


def _single(address: Address) -> Network:
    return Network(address, len(address) * 8)
