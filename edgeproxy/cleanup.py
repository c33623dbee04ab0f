"""Removes everything of ours from the kernel of this host, and nothing else.

Kernel settings (sysctl) stay as they are: other software may have come to rely on them.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeproxy.books import frontend_of, key_of
from edgeproxy.execution import Wires
from edgeproxy.frame import NAME as FRAME
from edgeproxy.kernel import iptables
from edgeproxy.kernel.ipvs_operations import RemoveVirtual
from edgeproxy.kernel.nft import FrameMissingError
from edgeproxy.kernel.nft_sets import TABLE
from edgeproxy.kernel.routes import DeleteRoute, State
from edgeproxy.kernel.ruleset import remove
from edgeproxy.model import Element, Frontend, SetName
from edgeproxy.ownership import NAME as OWNED
from edgeproxy.ownership import OwnershipLog, scope
from edgeproxy.settings import Settings


def cleanup(settings: Settings) -> Iterator[str]:
    """Remove virtual servers, routes and tables; yields a line for each thing removed.

    The lock of the state directory must be held. May be repeated.

    Raises:
        NftError, NetlinkError, RouteError, OSError: the kernel refused.
    """
    wires = Wires.open()
    try:
        yield from _servers(wires, settings)
        yield from _routes(wires)
        for family in wires.nft.tables():
            wires.nft.load(remove(family))
            yield f"removed table {family.word} {TABLE}"
    finally:
        wires.close()
    if accepts := iptables.remove(settings.proxy.mark_bit):
        yield f"removed {accepts} accept rules from iptables"
    for name in (OWNED, FRAME):
        (settings.state.dir / name).unlink(missing_ok=True)


def _servers(wires: Wires, settings: Settings) -> Iterator[str]:
    owned = OwnershipLog(settings.state.dir, scope()).read() | _registered(wires)
    anchors = settings.proxy.anchor_cidrs
    for state in wires.ipvs.dump():
        frontend = state.server.frontend
        if frontend is None:
            continue
        if frontend in owned or any(frontend.address in network for network in anchors):
            wires.ipvs.apply([RemoveVirtual(frontend, reason="cleanup")])
            yield f"removed virtual server {frontend} with {len(state.destinations)} real servers"


def _registered(wires: Wires) -> frozenset[Frontend]:
    found: list[Element] = []
    for name in (SetName.FRONTENDS4, SetName.FRONTENDS6):
        try:
            found.extend(held.element for held in wires.nft.dump(name))
        except FrameMissingError:
            continue
    frontends = (frontend_of(key_of(element)) for element in found)
    return frozenset(frontend for frontend in frontends if frontend is not None)


def _routes(wires: Wires) -> Iterator[str]:
    for route in wires.routes.own():
        (outcome,) = wires.routes.apply([DeleteRoute(route.network)])
        if outcome.state is State.DONE:
            yield f"removed route local {route.network}"
