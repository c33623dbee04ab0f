"""Which tracked flows must be forgotten because their backend is gone, and forgetting them.

IPVS never alters a confirmed conntrack again, and finds the one of an expired connection only by
client and *virtual* address (ip_vs_nfct.c). A flow that came through our node-port DNAT, or UDP that
never ends, would stay bound to a backend that left. Established TCP is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from edgeproxy.address import Address, Network, family
from edgeproxy.books import Socket
from edgeproxy.kernel.conntrack import Conntrack, Direction, Flow, Selection, TcpState
from edgeproxy.model import Frontend, Protocol
from edgeproxy.plan import Stale

SINGLE_LOOKS = 4
"""Up to so many backends the kernel filters by each; beyond, one list of the protocol is cheaper."""
OPENING = frozenset({TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.SYN_SENT2})


class StaleFlows:
    """Judges flows: those through given frontends to given backends.

    passed: frontends whose address was not delivered here, so that flows of any protocol went past IPVS.
    """

    def __init__(
        self, stale: Iterable[Stale], anchors: Sequence[Network], passed: Iterable[Frontend] = ()
    ) -> None:
        self._anchors = anchors
        self._lost: dict[tuple[int, Socket], set[Frontend]] = {}
        self._unserved = set(passed)
        for entry in stale:
            if not self._concerns(entry.frontend):
                continue
            if entry.real is None:
                self._unserved.add(entry.frontend)
            else:
                self._lost.setdefault((entry.frontend.protocol, entry.real), set()).add(entry.frontend)

    def _concerns(self, frontend: Frontend) -> bool:
        """UDP always; TCP only where it comes through our DNAT."""
        if frontend.protocol is Protocol.TCP:
            return self._is_anchor(frontend.address)
        return frontend.protocol is Protocol.UDP

    def _is_anchor(self, address: Address) -> bool:
        return any(address in network for network in self._anchors)

    def selections(self) -> Iterator[Selection]:
        """The lists to ask the kernel for; none if there is nothing to judge."""
        if len(self._lost) <= SINGLE_LOOKS and not self._unserved:
            for protocol, (address, port) in self._lost:
                yield Selection(family(address), protocol, reply_source=address, reply_source_port=port)
            return
        kinds = {(family(socket[0]), protocol) for protocol, socket in self._lost}
        kinds |= {(family(frontend.address), frontend.protocol) for frontend in self._unserved}
        yield from (Selection(af, protocol) for af, protocol in sorted(kinds))

    def __contains__(self, flow: Flow) -> bool:
        if flow.protocol == Protocol.TCP and flow.tcp_state not in OPENING:
            return False
        backend = (flow.reply.source, flow.reply.source_port)
        lost = self._lost.get((flow.protocol, backend), ())
        if any(self._through(flow.original, frontend) for frontend in lost):
            return True
        unanswered = backend == (flow.original.destination, flow.original.destination_port)
        return unanswered and any(
            self._through(flow.original, frontend)
            for frontend in self._unserved
            if frontend.protocol == flow.protocol
        )

    def _through(self, original: Direction, frontend: Frontend) -> bool:
        """Whether a client that sent this was served by the frontend; any host address for node ports."""
        if original.destination_port != frontend.port:
            return False
        return original.destination == frontend.address or self._is_anchor(frontend.address)


def forget(
    conntrack: Conntrack,
    stale: Iterable[Stale],
    anchors: Sequence[Network],
    passed: Iterable[Frontend] = (),
) -> int:
    """Delete the flows that are stale; how many there were. Arguments as of :class:`StaleFlows`.

    Raises:
        ConntrackError: the kernel refused.
    """
    wanted = StaleFlows(stale, anchors, passed)
    deleted = 0
    for selection in wanted.selections():
        deleted += conntrack.delete([flow for flow in conntrack.flows(selection) if flow in wanted])
    return deleted
