"""Removes everything of ours from the kernel of this host, and nothing else.

Kernel settings (sysctl) stay as they are: other software may have come to rely on them.

    CleanupError            something of ours could not be removed; run it again
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeproxy.books import frontend_of, key_of
from edgeproxy.frame import NAME as FRAME
from edgeproxy.keeper import NAME as KEPT
from edgeproxy.kernel import iptables
from edgeproxy.kernel.iptables import IptablesError
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.kernel.ipvs_operations import RemoveVirtual
from edgeproxy.kernel.ipvs_socket import NoIpvsError
from edgeproxy.kernel.netlink import NetlinkError
from edgeproxy.kernel.nft import FrameMissingError, Nft
from edgeproxy.kernel.nft_script import NftError
from edgeproxy.kernel.nft_sets import TABLE
from edgeproxy.kernel.routes import DeleteProxy, DeleteRoute, RouteError, Routes, State
from edgeproxy.kernel.ruleset import remove
from edgeproxy.model import Element, Frontend, SetName
from edgeproxy.ownership import NAME as OWNED
from edgeproxy.ownership import OwnershipLog, scope
from edgeproxy.settings import Settings


class CleanupError(Exception):
    """Something of ours could not be removed; the message names it."""


def cleanup(settings: Settings) -> Iterator[str]:
    """Remove virtual servers, routes and tables; yields a line for each thing removed.

    The lock of the state directory must be held. May be repeated. Traffic to services ends.

    Raises:
        CleanupError: the kernel refused; what was told of before is gone.
    """
    try:
        with Nft() as nft, Routes() as routes:
            # The register goes last: until then it says which virtual servers are ours.
            yield from _servers(nft, settings)
            yield from _routes(routes)
            for family in nft.tables():
                nft.load(remove(family))
                yield f"removed table {family.word} {TABLE}"
        if accepts := iptables.remove(settings.proxy.mark_bit):
            yield f"removed {accepts} accept rules from iptables"
        for name in (OWNED, FRAME, KEPT):
            (settings.state.dir / name).unlink(missing_ok=True)
    except (NftError, NetlinkError, RouteError, IptablesError, OSError) as error:
        raise CleanupError(f"{error}; run it again") from error


def _servers(nft: Nft, settings: Settings) -> Iterator[str]:
    owned = OwnershipLog(settings.state.dir, scope()).read() | _registered(nft)
    anchors = settings.proxy.anchor_cidrs
    try:
        ipvs = Ipvs()
    except NoIpvsError:
        # The module is not loaded: there are no virtual servers.
        return
    with ipvs:
        states = ipvs.dump()
        missed = owned - {state.server.frontend for state in states}
        for state in (*states, *ipvs.dump_frontends(missed).values()):
            frontend = state.server.frontend
            if frontend is None:
                continue
            if frontend in owned or any(frontend.address in network for network in anchors):
                if failures := ipvs.apply([RemoveVirtual(frontend, reason="cleanup")]):
                    raise CleanupError(f"{failures[0].message}; run it again")
                yield f"removed virtual server {frontend} with {len(state.destinations)} real servers"


def _registered(nft: Nft) -> frozenset[Frontend]:
    found: list[Element] = []
    for name in (SetName.FRONTENDS4, SetName.FRONTENDS6):
        try:
            found.extend(held.element for held in nft.dump(name))
        except FrameMissingError:
            continue
    frontends = (frontend_of(key_of(element)) for element in found)
    return frozenset(frontend for frontend in frontends if frontend is not None)


def _routes(routes: Routes) -> Iterator[str]:
    for route in routes.own():
        (outcome,) = routes.apply([DeleteRoute(route.network)])
        if outcome.state is not State.DONE:
            raise CleanupError(f"{outcome.operation}: {outcome.reason}; run it again")
        yield f"removed route local {route.network}"
    for proxy in routes.proxies():
        if proxy.ours:
            routes.apply([DeleteProxy(proxy.address, proxy.interface)])
            yield f"removed proxy neighbour {proxy}"
