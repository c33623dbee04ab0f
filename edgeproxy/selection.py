"""Which endpoints of a service serve, by kube-proxy's rules.

The rules are those of kube-proxy's `topology.go` (KEP-1669, KEP-2433, KEP-3015): ready endpoints,
filtered by node or zone hints; when none is left, those that terminate but still serve. Under a
Local policy the same with the endpoints of this node, without hints. What Kubernetes' controllers
settle before kube-proxy sees it, publishNotReadyAddresses and trafficDistribution, is settled here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from edgeproxy.address import Address, is_ipv4
from edgeproxy.model import Protocol
from edgeproxy.records import Endpoint, Service, ServicePort, TrafficDistribution, TrafficPolicy
from edgeproxy.versions import EndpointEntry


class Node(msgspec.Struct, frozen=True):
    """This host. name: trimmed, in lower case; "" if unknown. addresses: all of its own."""

    name: str = ""
    zone: str = ""
    addresses: frozenset[Address] = frozenset()

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "name", self.name.strip().lower())
        msgspec.structs.force_setattr(self, "zone", self.zone.strip())


class Backend(msgspec.Struct, frozen=True, order=True, gc=False):
    """An address and port that serves. `local`: it is on this host."""

    address: Address
    port: int
    weight: int = 1
    local: bool = False


class Selection(msgspec.Struct, frozen=True):
    """The backends of one service port in one family, each list sorted by address and port.

    cluster: for policy Cluster; () where nothing asks for it.
    local: for policy Local; () where nothing asks for it.
    has_any: whether some endpoint somewhere could serve; tells "drop" (none here) from "reject".
    unresolved: endpoints for which no port can be told, see :func:`resolve_port`.
    serving: for UDP the address and port of every endpoint that serves, whatever policies and hints
        say: flows to them are kept.
    """

    cluster: tuple[Backend, ...] = ()
    local: tuple[Backend, ...] = ()
    has_any: bool = False
    unresolved: tuple[EndpointEntry, ...] = ()
    serving: frozenset[tuple[Address, int]] = frozenset()


class _Candidate(msgspec.Struct, frozen=True, gc=False):
    """A backend with what decides whether it serves. `lingering`: it terminates but still serves."""

    backend: Backend
    ready: bool
    serving: bool
    lingering: bool
    zones: tuple[str, ...]
    nodes: tuple[str, ...]


def select(
    service: Service, port: ServicePort, endpoints: Sequence[EndpointEntry], node: Node, *, four: bool
) -> Selection:
    """The backends of a service port among the endpoints of one family, IPv4 if `four`."""
    copies: dict[tuple[Address, int], list[EndpointEntry]] = {}
    unresolved: list[EndpointEntry] = []
    for entry in endpoints:
        endpoint = entry.endpoint
        if is_ipv4(endpoint.address) != four:
            continue
        number = resolve_port(endpoint, service, port)
        if number is None:
            unresolved.append(entry)
        else:
            copies.setdefault((endpoint.address, number), []).append(entry)
    hinted = _has_hints(service, copies.values())
    candidates = [_candidate(service, copies[at], at[1], node, hinted=hinted) for at in sorted(copies)]
    cluster = _cluster(candidates, node) if uses_cluster(service, port) else []
    has_any = bool(cluster)
    local: list[_Candidate] = []
    if uses_local(service, port):
        local = _first_serving(candidate for candidate in candidates if candidate.backend.local)
        has_any = any(candidate.ready or candidate.lingering for candidate in candidates)
    return Selection(
        cluster=tuple(candidate.backend for candidate in cluster),
        local=tuple(candidate.backend for candidate in local),
        has_any=has_any,
        unresolved=tuple(unresolved),
        serving=_sockets(candidates) if port.protocol is Protocol.UDP else frozenset(),
    )


def externally_accessible(service: Service, port: ServicePort) -> bool:
    """Whether a port has any frontend that externalTrafficPolicy applies to."""
    return bool(port.node_port or service.external_ips or service.load_balancer_ips)


def uses_cluster(service: Service, port: ServicePort) -> bool:
    """Whether any client of a port is served by all endpoints.

    Under externalTrafficPolicy Local these are processes of this host and its local workloads.
    """
    return service.internal_policy is not TrafficPolicy.LOCAL or externally_accessible(service, port)


def uses_local(service: Service, port: ServicePort) -> bool:
    """Whether any client of a port is served by the endpoints of this node only."""
    return service.internal_policy is TrafficPolicy.LOCAL or (
        service.external_policy is TrafficPolicy.LOCAL and externally_accessible(service, port)
    )


def resolve_port(endpoint: Endpoint, service: Service, port: ServicePort) -> int | None:
    """The port of an endpoint that serves a service port; None if its record leaves that open.

    An endpoint port named like `targetPort`; else one named like the service port; else `port` of
    the endpoint, if the service has just one; else the number in `targetPort`, or the service port
    itself where that names none. An endpoint that does name its ports serves a named service port
    through a port of a matching name only, as in an EndpointSlice.
    """
    if not endpoint.ports and not endpoint.port:
        return port.target_port if isinstance(port.target_port, int) else port.port
    named = dict(endpoint.ports)
    if isinstance(port.target_port, str) and port.target_port in named:
        return named[port.target_port]
    if port.name in named:
        return named[port.name]
    if endpoint.port:
        return endpoint.port if len(service.ports) == 1 else None
    if port.name or isinstance(port.target_port, str):
        return None
    return port.target_port


def is_local(endpoint: Endpoint, node: Node) -> bool:
    """Whether an endpoint is on this host: by its node name, or without one by its address."""
    if endpoint.node_name:
        return endpoint.node_name == node.name
    return endpoint.address in node.addresses


def is_ready(endpoint: Endpoint, service: Service) -> bool:
    """Whether an endpoint takes new connections.

    Under publishNotReadyAddresses every one does, even while it terminates (Kubernetes'
    EndpointSlice controller writes `ready: true` for them).
    """
    return endpoint.ready or service.publish_not_ready


def ready_local_addresses(service: Service, endpoints: Iterable[EndpointEntry], node: Node) -> int:
    """How many addresses of this host serve, for the health check of load balancers.

    Terminating endpoints are not counted even where they still serve, so that the load balancer
    turns away before they are gone (KEP-1669).
    """
    return len(
        {
            entry.endpoint.address
            for entry in endpoints
            if is_ready(entry.endpoint, service)
            and not entry.endpoint.terminating
            and is_local(entry.endpoint, node)
        }
    )


def _has_hints(service: Service, copies: Iterable[list[EndpointEntry]]) -> bool:
    """Whether any ready endpoint says itself where its clients should be."""
    if service.traffic_distribution is TrafficDistribution.NONE:
        return True
    return any(
        entry.endpoint.zone_hints or entry.endpoint.node_hints
        for each in copies
        for entry in each
        if is_ready(entry.endpoint, service)
    )


def _candidate(
    service: Service, copies: list[EndpointEntry], port: int, node: Node, *, hinted: bool
) -> _Candidate:
    """Merge the records of one address and port: they are one backend.

    It serves if any of them does and is local if any of them is. The lowest create revision gives
    the weight and, among the ready ones, the hints.
    """
    if len(copies) == 1:
        first = oldest = copies[0].endpoint
        ready, local = is_ready(first, service), is_local(first, node)
        serving, lingering = ready or first.serving, first.serving and first.terminating
    else:
        copies.sort(key=lambda entry: (entry.create_revision, entry.key))
        oldest = copies[0].endpoint
        first = next((e.endpoint for e in copies if is_ready(e.endpoint, service)), oldest)
        ready, local = is_ready(first, service), any(is_local(e.endpoint, node) for e in copies)
        serving = ready or any(e.endpoint.serving for e in copies)
        lingering = any(e.endpoint.serving and e.endpoint.terminating for e in copies)
    zones, nodes = first.zone_hints, first.node_hints
    if not hinted:
        zones = (first.zone,) if first.zone else ()
        if first.node_name and service.traffic_distribution is TrafficDistribution.SAME_NODE:
            nodes = (first.node_name,)
    return _Candidate(
        Backend(oldest.address, port, oldest.weight, local), ready, serving, lingering, zones, nodes
    )


def _cluster(candidates: list[_Candidate], node: Node) -> list[_Candidate]:
    """The ready ones that hints do not rule out here, else those that terminate but still serve.

    A hint counts only if every ready endpoint has one and some name us: one endpoint without
    hints, or a node or zone nobody names, switches that kind of hint off.
    """
    ready = [candidate for candidate in candidates if candidate.ready]
    if node.name and all(candidate.nodes for candidate in ready):
        near = [candidate for candidate in ready if node.name in candidate.nodes]
        if near:
            return near
    if node.zone and all(candidate.zones for candidate in ready):
        near = [candidate for candidate in ready if node.zone in candidate.zones]
        if near:
            return near
    return ready or [candidate for candidate in candidates if candidate.lingering]


def _sockets(candidates: Iterable[_Candidate]) -> frozenset[tuple[Address, int]]:
    return frozenset((c.backend.address, c.backend.port) for c in candidates if c.serving)


def _first_serving(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    given = list(candidates)
    ready = [candidate for candidate in given if candidate.ready]
    return ready or [candidate for candidate in given if candidate.lingering]
