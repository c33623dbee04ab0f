"""One service, its endpoints, this node and the settings: its part of the desired state.

Every frontend of a service falls into a traffic class (`ruleset.Chain`) and gets a list of backends:

===================  ==========================  =============================================
frontend             policy                      virtual servers
===================  ==========================  =============================================
cluster IP           internalTrafficPolicy       at the address
external, LB IP      externalTrafficPolicy       at the address; under Local also at a detour
                                                 anchor, with all endpoints, for host processes
                                                 and local workloads
node port            externalTrafficPolicy       at the front anchor; under Local also at the
                                                 inside anchor
===================  ==========================  =============================================

The semantics are those of kube-proxy's specification (KEP-2086, KEP-1669, "Virtual IPs and Service
Proxies"), not those of its IPVS mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from edgeproxy.address import Address, Network, is_ipv4, text, within
from edgeproxy.books import ElementKey, HealthCheck, Part, Target, key_of
from edgeproxy.catalog import EndpointEntry, ServiceEntry
from edgeproxy.claims import LostClaim, NodePortClaim
from edgeproxy.kernel.nft_sets import comment
from edgeproxy.kernel.ruleset import Chain, NodePortAnchor, anchor
from edgeproxy.model import Element, Finding, Frontend, Protocol, RealServer, Reason, SetName, VirtualServer
from edgeproxy.records import Service, ServicePort, TrafficPolicy
from edgeproxy.refusals import Refusals
from edgeproxy.selection import Backend, Node, Selection, ready_local_addresses, select
from edgeproxy.settings import Masquerade, Proxy

MH_PORT = 0x10
"""IP_VS_SVC_F_SCHED_MH_PORT: the mh scheduler hashes the source port, too (as kube-proxy does)."""
WEIGHTLESS = frozenset({"rr", "lc", "dh"})
"""Schedulers that ignore weights (ipvsadm(8))."""


class Host(msgspec.Struct, frozen=True):
    """Everything a compilation depends on beside the service itself.

    detours: anchor of each external address that a service under Local uses, if one was left; the
        reconciler allots them and the kernel remembers them.
    """

    node: Node
    proxy: Proxy
    refusals: Refusals = Refusals()
    detours: Mapping[Address, Address] = msgspec.field(default_factory=dict)


def external_addresses(service: Service) -> tuple[Address, ...]:
    """Addresses of a service that externalTrafficPolicy applies to, each once."""
    return tuple(dict.fromkeys((*service.external_ips, *service.load_balancer_ips)))


def detoured(service: Service) -> tuple[Address, ...]:
    """The external addresses of a service that need an anchor of their own (see `detours`)."""
    return external_addresses(service) if service.external_policy is TrafficPolicy.LOCAL else ()


def compile_service(entry: ServiceEntry, lost: Sequence[LostClaim], host: Host) -> Part:
    """Compile one service.

    lost: the frontends, node ports and health check ports that an earlier record holds.
    """
    if not entry.service.serves:
        return Part()
    return _Compilation(entry, lost, host).part()


class _Compilation:
    """The work on one service: collects targets, elements, routes and findings."""

    def __init__(self, entry: ServiceEntry, lost: Sequence[LostClaim], host: Host) -> None:
        self._entry = entry
        self._service = entry.service
        self._host = host
        self._comment = comment(entry.name)
        self._lost = {claim.claim for claim in lost}
        self._targets: list[Target] = []
        self._elements: dict[ElementKey, Element] = {}
        self._routes: dict[Address, None] = {}
        self._findings: list[Finding] = []
        self._scheduler = self._service.scheduler or host.proxy.scheduler
        seconds = self._service.drain_seconds
        self._drain = host.proxy.drain if seconds is None else float(seconds)
        self._endpoints = self._usable_endpoints()

    def part(self) -> Part:
        for index, port in enumerate(self._service.ports):
            for four in (True, False):
                self._port(index, port, four=four)
        return Part(
            targets=tuple(self._targets),
            elements=tuple(self._elements.values()),
            routes=tuple(self._routes),
            health_check=self._health_check(),
            findings=tuple(self._findings),
        )

    def _port(self, index: int, port: ServicePort, *, four: bool) -> None:
        """Everything one service port needs in one family."""
        service = self._service
        cluster_ips = [a for a in service.cluster_ips if is_ipv4(a) == four]
        externals = [a for a in external_addresses(service) if is_ipv4(a) == four]
        node_port = port.node_port and self._node_port_family(four) and self._node_port_allowed(index, port)
        if not (cluster_ips or externals or node_port):
            return
        selection = select(service, port, self._endpoints, self._host.node, four=four)
        self._unresolved(index, selection)
        self._weights(selection)
        for address in cluster_ips:
            self._cluster_ip(Frontend(address, port.protocol, port.port), selection)
        for address in externals:
            self._external(Frontend(address, port.protocol, port.port), selection)
        if node_port:
            self._node_port(port, selection, four=four)

    def _cluster_ip(self, frontend: Frontend, selection: Selection) -> None:
        if frontend in self._lost:
            return
        chain, backends = Chain.CLUSTER_IP, selection.cluster
        if self._service.internal_policy is TrafficPolicy.LOCAL:
            backends = selection.local
            if not backends and selection.has_any:
                chain = Chain.CLUSTER_IP_SILENT
        self._serve(frontend, backends, selection)
        self._register(frontend, chain)
        if not self._in_service_cidrs(frontend.address):
            self._routes[frontend.address] = None
            self._find(
                "clusterIP",
                Reason.OUTSIDE_SERVICE_CIDRS,
                f"{text(frontend.address)} lies in no [proxy] service_cidrs: served by a route of its own; "
                "add its network to service_cidrs or choose an address inside them",
            )

    def _external(self, frontend: Frontend, selection: Selection) -> None:
        if frontend in self._lost or not self._external_allowed(frontend.address):
            return
        service = self._service
        ranged = bool(service.source_ranges) and frontend.address in service.load_balancer_ips
        if service.external_policy is TrafficPolicy.CLUSTER:
            chain = Chain.RANGED_CLUSTER if ranged else Chain.EXTERNAL_CLUSTER
            self._serve(frontend, selection.cluster, selection)
        else:
            silent = not selection.local and selection.has_any
            if ranged:
                chain = Chain.RANGED_SILENT if silent else Chain.RANGED_LOCAL
            else:
                chain = Chain.EXTERNAL_SILENT if silent else Chain.EXTERNAL_LOCAL
            self._serve(frontend, selection.local, selection)
            self._detour(frontend, selection)
        self._register(frontend, chain)
        if ranged:
            self._source_ranges(frontend)
        if frontend.address not in self._host.node.addresses:
            self._routes[frontend.address] = None

    def _detour(self, frontend: Frontend, selection: Selection) -> None:
        """All endpoints for host processes and local workloads that call an address under Local."""
        at = self._host.detours.get(frontend.address)
        if at is None:
            why = (
                f"no anchor is left for {text(frontend.address)}: host processes and local workloads that call it "
                "get endpoints of this host only; give [proxy] anchor_cidrs a larger network"
            )
            self._find("externalTrafficPolicy", Reason.CONFIGURATION, why)
            return
        self._serve(Frontend(at, frontend.protocol, frontend.port), selection.cluster, selection)
        name = SetName.DETOURS4 if is_ipv4(at) else SetName.DETOURS6
        self._element(Element(name, _fields(frontend), data=at, comment=self._comment))

    def _source_ranges(self, frontend: Frontend) -> None:
        four = is_ipv4(frontend.address)
        name = SetName.SOURCES4 if four else SetName.SOURCES6
        for network in _widest(self._service.source_ranges):
            if is_ipv4(network.address) == four:
                first, last = (*_fields(frontend), network.address), (*_fields(frontend), network.last)
                self._element(Element(name, first, until=last, comment=self._comment))

    def _node_port(self, port: ServicePort, selection: Selection, *, four: bool) -> None:
        chain, backends = Chain.NODE_PORT_CLUSTER, selection.cluster
        cidr = next(n for n in self._host.proxy.anchor_cidrs if is_ipv4(n.address) == four)
        if self._service.external_policy is TrafficPolicy.LOCAL:
            chain, backends = Chain.NODE_PORT_LOCAL, selection.local
            if not backends and selection.has_any:
                chain = Chain.NODE_PORT_SILENT
            inside = anchor(cidr, NodePortAnchor.INSIDE)
            self._serve(Frontend(inside, port.protocol, port.node_port), selection.cluster, selection)
        front = anchor(cidr, NodePortAnchor.FRONT)
        self._serve(Frontend(front, port.protocol, port.node_port), backends, selection)
        name = SetName.NODE_PORTS4 if four else SetName.NODE_PORTS6
        key = (port.protocol, port.node_port)
        self._element(Element(name, key, verdict=chain.of(front), comment=self._comment))

    def _serve(self, frontend: Frontend, backends: Sequence[Backend], selection: Selection) -> None:
        """A virtual server with these backends, and the hairpin pairs they need."""
        server = VirtualServer(
            frontend,
            self._scheduler,
            timeout=self._service.affinity_timeout,
            flags=MH_PORT if self._scheduler == "mh" else 0,
        )
        reals = tuple(RealServer(b.address, b.port, b.weight) for b in backends)
        self._targets.append(Target(server, reals, self._drain, selection.serving))
        for backend in self._calling_themselves(backends):
            name = SetName.HAIRPIN4 if is_ipv4(backend.address) else SetName.HAIRPIN6
            self._element(Element(name, (backend.address, backend.address)))

    def _calling_themselves(self, backends: Iterable[Backend]) -> list[Backend]:
        """Those from which a flow to themselves could pass here without the masquerade mark."""
        proxy = self._host.proxy
        if proxy.masquerade is not Masquerade.NONE:
            inside = within(proxy.local_cidrs) if proxy.local_cidrs else None
            backends = [b for b in backends if b.local or (inside and inside(b.address))]
        return [b for b in backends if b.address not in self._host.node.addresses]

    def _register(self, frontend: Frontend, chain: Chain) -> None:
        four = is_ipv4(frontend.address)
        name = SetName.FRONTENDS4 if four else SetName.FRONTENDS6
        verdict = chain.of(frontend.address)
        self._element(Element(name, _fields(frontend), verdict=verdict, comment=self._comment))
        if frontend.address not in self._host.node.addresses:
            name = SetName.ADDRESSES4 if four else SetName.ADDRESSES6
            self._element(Element(name, (frontend.address,)))
            if four and not self._host.proxy.answer_arp and not self._in_service_cidrs(frontend.address):
                self._element(Element(SetName.UNANSWERED, (frontend.address,)))

    def _in_service_cidrs(self, address: Address) -> bool:
        return within(self._host.proxy.service_cidrs)(address)

    def _element(self, element: Element) -> None:
        self._elements[key_of(element)] = element

    def _node_port_family(self, four: bool) -> bool:
        """Node ports open in the families of the service's addresses; without any, of its endpoints."""
        addresses = (*self._service.cluster_ips, *external_addresses(self._service))
        addresses = addresses or tuple(e.endpoint.address for e in self._endpoints)
        return not addresses or any(is_ipv4(address) == four for address in addresses)

    def _node_port_allowed(self, index: int, port: ServicePort) -> bool:
        if NodePortClaim(port.protocol, port.node_port) in self._lost:
            return False
        holder = self._host.refusals.node_ports.get(port.node_port)
        allowed = self._host.proxy.node_port_range
        if holder is not None:
            why = f"port {port.node_port} is used by {holder} on this host; choose another node port"
        elif port.node_port not in allowed:
            why = f"{port.node_port} is outside [proxy] node_port_range {allowed}; choose a port inside it"
        else:
            return True
        self._find(f"ports[{index}].nodePort", Reason.REFUSED, why)
        return False

    def _external_allowed(self, address: Address) -> bool:
        what = self._host.refusals.addresses.get(address)
        if what is None and any(e.endpoint.address == address for e in self._entry.endpoints):
            what = "one of the service's own endpoints"
        listed = address in self._service.external_ips
        path = "externalIPs" if listed else "loadBalancerIPs"
        if what is not None:
            why = f"{text(address)} is {what}: serving it would cut this host off from it"
        elif not within(self._host.proxy.external_cidrs)(address):
            why = f"{text(address)} is outside [proxy] external_cidrs"
        else:
            return True
        self._find(path, Reason.REFUSED, why)
        return False

    def _usable_endpoints(self) -> tuple[EndpointEntry, ...]:
        proxy = self._host.proxy
        reserved = within((*proxy.service_cidrs, *proxy.anchor_cidrs))
        usable = []
        for entry in self._entry.endpoints:
            address = entry.endpoint.address
            if not reserved(address):
                usable.append(entry)
                continue
            kind = "service" if self._in_service_cidrs(address) else "anchor"
            why = f"{text(address)} lies inside [proxy] {kind}_cidrs: an endpoint must be a real host"
            self._findings.append(Finding(entry.key, entry.mod_revision, "address", Reason.REFUSED, why))
        return tuple(usable)

    def _weights(self, selection: Selection) -> None:
        if self._scheduler in WEIGHTLESS and len({b.weight for b in selection.cluster if b.weight}) > 1:
            why = f"scheduler {self._scheduler} ignores weights, but the endpoints' weights differ"
            self._find("scheduler", Reason.WEIGHTS_IGNORED, f"{why}; use w{self._scheduler}")

    def _unresolved(self, index: int, selection: Selection) -> None:
        port = self._service.ports[index]
        for entry in selection.unresolved:
            why = (
                f"names no port for ports[{index}] of service {self._entry.name} "
                f"(targetPort {port.target_port!r}, name {port.name!r}): add it to `ports`"
            )
            self._findings.append(
                Finding(entry.key, entry.mod_revision, "ports", Reason.UNRESOLVED_PORT, why)
            )

    def _health_check(self) -> HealthCheck | None:
        port = self._service.health_check_port
        if not port or NodePortClaim(Protocol.TCP, port) in self._lost:
            return None
        return HealthCheck(port, ready_local_addresses(self._service, self._endpoints, self._host.node))

    def _find(self, path: str, reason: Reason, message: str) -> None:
        finding = Finding(self._entry.key, self._entry.mod_revision, path, reason, message)
        if finding not in self._findings:
            self._findings.append(finding)


def _widest(networks: Sequence[Network]) -> tuple[Network, ...]:
    """Networks without those that lie inside another: the kernel refuses ranges that overlap."""
    return tuple(n for n in networks if not any(n.overlaps(o) and o.prefix < n.prefix for o in networks))


def _fields(frontend: Frontend) -> tuple[Address, Protocol, int]:
    return (frontend.address, frontend.protocol, frontend.port)
