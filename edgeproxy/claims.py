"""Who has claimed which frontend or node port, and who gets it.

The claimant with the lowest create revision wins, ties of one transaction go by key: the answer
depends on the records alone, never on the order in which they arrived. It is given for each claim
by itself, so a service that loses one port keeps its others.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

import msgspec

from edgeproxy.model import Frontend, Protocol
from edgeproxy.records import Service, ServiceType


class NodePortClaim(msgspec.Struct, frozen=True, order=True, gc=False):
    """A port on the host's own addresses; health check node ports are among them, as TCP."""

    protocol: Protocol
    port: int

    def __str__(self) -> str:
        return f"node port {self.protocol.name.lower()}/{self.port}"


Claim = Frontend | NodePortClaim


class LostClaim(msgspec.Struct, frozen=True, gc=False):
    """Something a service asks for that belongs to another one.

    path: JSON path in the losing record (`ports[0].nodePort`).
    claim: the frontend or node port.
    winner_key: key of the record that has it.
    """

    path: str
    claim: Claim
    winner_key: str


class Claimant(msgspec.Struct, frozen=True, order=True, gc=False):
    """A record that claims something; the order is that of precedence."""

    create_revision: int
    key: str
    service: str


def claims(service: Service) -> Iterator[tuple[str, Claim]]:
    """Everything a service claims, with the JSON path that asks for it; an ExternalName claims nothing."""
    if service.type is ServiceType.EXTERNAL_NAME:
        return
    addresses = (*service.cluster_ips, *service.external_ips, *service.load_balancer_ips)
    for index, port in enumerate(service.ports):
        for address in addresses:
            yield f"ports[{index}].port", Frontend(address, port.protocol, port.port)
        if port.node_port:
            yield f"ports[{index}].nodePort", NodePortClaim(port.protocol, port.node_port)
    if health := service.health_check_port:
        yield "healthCheckNodePort", NodePortClaim(Protocol.TCP, health)


class Claims:
    """The claims of all services, and who loses what.

    Entering and leaving take effect at once for :meth:`winner`; what each service loses is judged
    by :meth:`settle`, once for any number of changes.
    """

    def __init__(self) -> None:
        self._claimants: dict[Claim, list[Claimant]] = {}
        self._entered: dict[str, tuple[Claimant, Service]] = {}
        self._lost: dict[str, tuple[LostClaim, ...]] = {}
        self._contested: set[Claim] = set()
        self._unsettled: set[str] = set()
        self._former: dict[Claim, Claimant | None] = {}

    def enter(self, claimant: Claimant, service: Service) -> None:
        """Enter what a service claims, in place of what it claimed before."""
        self.leave(claimant.service)
        self._entered[claimant.service] = (claimant, service)
        for _, claim in claims(service):
            self._former.setdefault(claim, self.winner(claim))
            claimants = self._claimants.setdefault(claim, [])
            if claimant not in claimants:
                insort(claimants, claimant)
                if len(claimants) > 1:
                    self._contested.add(claim)

    def leave(self, name: str) -> None:
        """Take back everything a service claims."""
        self._unsettled.add(name)
        claimant, service = self._entered.pop(name, (None, None))
        if claimant is None or service is None:
            return
        for _, claim in claims(service):
            self._former.setdefault(claim, self.winner(claim))
            claimants = self._claimants.get(claim, [])
            if claimant in claimants:
                claimants.remove(claimant)
            if len(claimants) < 2:
                self._contested.discard(claim)
            if not claimants:
                self._claimants.pop(claim, None)

    def settle(self) -> frozenset[str]:
        """Judge everything that changed since the last call; answers whose losses differ now."""
        rivals, former_winners = self._unsettled, self._former
        self._unsettled, self._former = set(), {}
        if not self._contested and not self._lost:
            return frozenset()
        for claim, former in former_winners.items():
            if self.winner(claim) != former:
                rivals.update(claimant.service for claimant in self._claimants.get(claim, ()))
        changed = set()
        for name in rivals:
            lost = self._judge(name)
            if lost != self._lost.get(name, ()):
                changed.add(name)
            if lost:
                self._lost[name] = lost
            else:
                self._lost.pop(name, None)
        return frozenset(changed)

    def winner(self, claim: Claim) -> Claimant | None:
        """Who has it; None if nobody claims it."""
        claimants = self._claimants.get(claim)
        return claimants[0] if claimants else None

    def lost(self, name: str) -> tuple[LostClaim, ...]:
        """What a service claims and does not get."""
        return self._lost.get(name, ())

    def losers(self) -> tuple[str, ...]:
        """The services that lose anything."""
        return tuple(self._lost)

    def _judge(self, name: str) -> tuple[LostClaim, ...]:
        claimant, service = self._entered.get(name, (None, None))
        if claimant is None or service is None:
            return ()
        found: list[LostClaim] = []
        for path, claim in claims(service):
            winner = self._claimants[claim][0]
            if winner.key != claimant.key:
                found.append(LostClaim(path, claim, winner.key))
        return tuple(found)
