"""Answers neighbour requests for IPv6 addresses we serve without owning: only with `answer_arp = true`.

IPv4 needs nothing for this: the kernel answers ARP for every address a local route makes its own. For
IPv6 it does not, so each such address outside the service CIDRs gets a proxy neighbour on every interface.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeproxy.address import Address, is_ipv4
from edgeproxy.kernel import sysctl
from edgeproxy.kernel.routes import DeleteProxy, PutProxy, RouteOperation, Routes, State
from edgeproxy.kernel.sysctl import Sysctl
from edgeproxy.model import Finding, Reason


class ProxyNeighbours:
    """Our proxy neighbours."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._troubles: tuple[str, ...] = ()
        self._used = True

    def ensure(self, addresses: Iterable[Address], *, answer: bool) -> None:
        """Make exactly these addresses answered (none unless `answer`).

        Raises:
            RouteError: the kernel refused.
        """
        if not answer and not self._used:
            return
        interfaces = [i.name for i in self._routes.interfaces() if i.up and not i.loopback] if answer else []
        wanted = {(a, name) for a in addresses if not is_ipv4(a) for name in interfaces}
        found = {(p.address, p.interface) for p in self._routes.proxies() if p.ours}
        operations: list[RouteOperation] = [
            *(DeleteProxy(*pair) for pair in sorted(found - wanted)),
            *(PutProxy(*pair) for pair in sorted(wanted - found)),
        ]
        outcomes = self._routes.apply(operations)
        self._troubles = tuple(outcome.reason for outcome in outcomes if outcome.state is not State.DONE)
        if wanted:
            settings = [Sysctl(f"net/ipv6/conf/{name}/proxy_ndp", "1") for name in interfaces]
            self._troubles += tuple(str(o) for o in sysctl.apply(settings) if not o.good)
        self._used = bool(wanted)

    def findings(self) -> tuple[Finding, ...]:
        """What stands in the way."""
        return tuple(Finding("", 0, "[proxy] answer_arp", Reason.ROUTE, why) for why in self._troubles)
