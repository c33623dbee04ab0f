"""What other software on the host does to traffic we serve: findings, and consent where configured.

Looked at when the reconciler adopts, at audits after the rule set has changed, and never in between.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from edgeproxy.books import ElementKey
from edgeproxy.kernel import firewall, iptables, sockets
from edgeproxy.kernel.firewall import ClosedChain
from edgeproxy.kernel.iptables import IptablesError
from edgeproxy.kernel.netlink import NetlinkError
from edgeproxy.model import Element, Finding, Protocol, Reason, SetName
from edgeproxy.settings import AcceptIn, Proxy

log = logging.getLogger(__name__)

NODE_PORT_SETS = (SetName.NODE_PORTS4, SetName.NODE_PORTS6)
IPTABLES_FAMILIES = frozenset({"ip", "ip6"})


class Coexistence:
    """The neighbours of one host's data plane."""

    def __init__(self) -> None:
        self._chains: tuple[ClosedChain, ...] = ()
        self._listening: frozenset[tuple[Protocol, int]] = frozenset()
        self._trouble = ""
        self._accepting = False

    def look_at_rules(self, proxy: Proxy) -> bool:
        """See which chains of others drop by default; add our accepts where that is configured.

        False if the chains could not be read.
        """
        self._trouble = ""
        before, self._accepting = self._accepting, proxy.accept_in is AcceptIn.IPTABLES
        try:
            if before and not self._accepting:
                log.info(
                    "removed %d accept rules from iptables' filter table", iptables.remove(proxy.mark_bit)
                )
            if self._accepting and (added := iptables.ensure(proxy.mark_bit)):
                log.info("added %d accept rules to iptables' filter table", added)
        except IptablesError as error:
            self._accepting = False
            self._trouble = str(error)
        try:
            self._chains = firewall.closed_chains()
        except (NetlinkError, OSError) as error:
            log.warning("the chains of other programs cannot be read: %s", error)
            return False
        return True

    def look_at_sockets(self) -> None:
        """See which ports processes of the host listen on."""
        try:
            self._listening = sockets.listening()
        except (NetlinkError, OSError) as error:
            log.warning("listening sockets cannot be read: %s", error)

    def findings(self, wanted: Mapping[ElementKey, Element]) -> list[Finding]:
        """What stands, given the elements we want in the kernel."""
        found = [_closed(chain) for chain in self._chains if not self._consents(chain)]
        if self._trouble:
            found.append(Finding("", 0, "[proxy] accept_in", Reason.FIREWALL, self._trouble))
        for protocol, port in self._listening:
            for name in NODE_PORT_SETS:
                if element := wanted.get((name, (protocol, port))):
                    found.append(_occupied(protocol, port, element.comment))
        return found

    def _consents(self, chain: ClosedChain) -> bool:
        """Whether our accept rules are in that very chain."""
        mine = chain.family in IPTABLES_FAMILIES and chain.table == "filter" and chain.name in iptables.CHAINS
        return self._accepting and mine


def _closed(chain: ClosedChain) -> Finding:
    why = (
        f"chain {chain} of another program keeps out what it does not accept: let it accept the traffic of "
        "services (see docs/operations.md, firewalls)"
    )
    if chain.family in IPTABLES_FAMILIES and chain.name in iptables.CHAINS:
        why += ', or set [proxy] accept_in = "iptables"'
    return Finding("", 0, f"{chain.family} {chain.table} {chain.name}", Reason.FIREWALL, why)


def _occupied(protocol: Protocol, port: int, service: str) -> Finding:
    name = protocol.name.lower()
    why = (
        f"a process of this host listens on {name} port {port}, which service {service} has as node port: the "
        "service gets the traffic; stop the process or choose another node port"
    )
    return Finding("", 0, f"{name}/{port}", Reason.NODE_PORT_IN_USE, why)
