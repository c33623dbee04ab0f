"""What the host contributes: from addresses, routes and settings to what compiling depends on. Pure.

Decisions of the design's section 7: which source local routes name (4), which service CIDRs cannot
be installed here (6), and what no record may take over (guard rails).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec

from edgeproxy.address import LOOPBACK, Address, Network, is_ipv4, parse, text
from edgeproxy.kernel.routes_codec import HostAddress, Route, choose_source
from edgeproxy.kernel.ruleset import Frame
from edgeproxy.model import Finding, Reason
from edgeproxy.refusals import Refusals
from edgeproxy.selection import Node
from edgeproxy.settings import AcceptIn, Proxy, Settings


class HostFacts(msgspec.Struct, frozen=True):
    """What was read from the host at one moment.

    name_servers: from resolv.conf. loopback_up: whether `lo` is.
    """

    addresses: tuple[HostAddress, ...]
    routes: tuple[Route, ...]
    name_servers: tuple[Address, ...] = ()
    loopback_up: bool = True


class Surroundings(msgspec.Struct, frozen=True):
    """What compiling, the frame and the local routes depend on.

    proxy: the settings, with the service CIDRs that can be served here.
    sources: the host's source address for local routes, IPv4 then IPv6, None where it has none.
    health_hosts: addresses where healthCheckNodePorts listen, as text; `0.0.0.0` and `::` for all of a family.
    """

    node: Node
    proxy: Proxy
    refusals: Refusals
    frame: Frame
    sources: tuple[Address | None, Address | None]
    ipv6: bool
    health_hosts: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def source_for(self, address: Address) -> Address | None:
        """The source of host processes that call an address."""
        return self.sources[0 if is_ipv4(address) else 1]

    def local_networks(self) -> tuple[Network, ...]:
        """The networks delivered locally whatever the records say: service CIDRs and anchors."""
        networks = (*self.proxy.service_cidrs, *self.proxy.anchor_cidrs)
        return tuple(n for n in networks if self.ipv6 or is_ipv4(n.address))


def survey(settings: Settings, facts: HostFacts) -> Surroundings:
    """Work out the surroundings."""
    findings: list[Finding] = []
    etcd = tuple(_etcd_addresses(settings))
    cidrs = []
    for cidr in settings.proxy.service_cidrs:
        obstacle = _obstacle(cidr, facts, etcd)
        if obstacle is None:
            cidrs.append(cidr)
        else:
            why = f"service CIDR {cidr} overlaps {obstacle}: it is not installed; choose a free network"
            findings.append(_finding("[proxy] service_cidrs", Reason.ROUTE, why))
    if not facts.loopback_up:
        findings.append(_finding("", Reason.ROUTE, "interface lo is down: ip link set lo up"))
    proxy = msgspec.structs.replace(settings.proxy, service_cidrs=tuple(cidrs))
    addresses = settings.node.addresses or tuple(a.address for a in facts.addresses)
    local = frozenset(a for a in addresses if not any(a in network for network in LOOPBACK))
    chosen = (choose_source(af, facts.addresses, facts.routes) for af in (socket.AF_INET, socket.AF_INET6))
    four, six = chosen
    frame = _frame(proxy, (four, six))
    return Surroundings(
        node=Node(settings.node.name, settings.node.zone, local),
        proxy=proxy,
        refusals=_refusals(settings, facts, etcd, local),
        frame=frame,
        sources=(four, six),
        ipv6=any(not is_ipv4(a.address) for a in facts.addresses),
        health_hosts=tuple(_health_hosts(frame, facts)),
        findings=tuple(findings),
    )


def _frame(proxy: Proxy, sources: tuple[Address | None, Address | None]) -> Frame:
    chosen = proxy.node_port_addresses
    primary = tuple(Network(a, len(a) * 8) for a in sources if a is not None) if chosen.primary else ()
    return Frame(
        service_cidrs=proxy.service_cidrs,
        local_cidrs=proxy.local_cidrs,
        anchor_cidrs=proxy.anchor_cidrs,
        node_port_addresses=(*chosen.networks, *primary),
        masquerade=proxy.masquerade,
        mark_bit=proxy.mark_bit,
        node_port_range=proxy.node_port_range,
        answer_arp=proxy.answer_arp,
        accept_marked=proxy.accept_in is AcceptIn.IPTABLES,
    )


def _health_hosts(frame: Frame, facts: HostFacts) -> Iterator[str]:
    """Where health checks of services are answered: on the addresses that answer node ports, as in kube-proxy."""
    for everything in ("0.0.0.0", "::"):
        chosen = [n for n in frame.node_port_addresses if is_ipv4(n.address) == is_ipv4(parse(everything))]
        own = {
            a.address
            for a in facts.addresses
            if is_ipv4(a.address) == is_ipv4(parse(everything)) and a.bindable
        }
        if chosen and all(network.prefix for network in chosen):
            yield from sorted(text(a) for a in own if any(a in n for n in chosen))
        elif own:
            yield everything


def _obstacle(cidr: Network, facts: HostFacts, etcd: tuple[Address, ...]) -> str | None:
    """What a service CIDR must not swallow, if anything."""
    for address in facts.addresses:
        if address.address in cidr:
            return f"the host's address {address}"
    for route in facts.routes:
        if route.network.prefix and route.network.overlaps(cidr):
            return f"the route {route}"
    for member in etcd:
        if member in cidr:
            return f"the etcd endpoint {text(member)}"
    return None


def _refusals(
    settings: Settings, facts: HostFacts, etcd: tuple[Address, ...], local: frozenset[Address]
) -> Refusals:
    ports: dict[int, str] = {}
    for name, port in _etcd_hosts(settings):
        here = name == "localhost" or _loopback(name) or any(text(a) == name.strip("[]") for a in local)
        if here:
            ports[port] = "etcd"
    for section, listen in (("health", settings.health.listen), ("metrics", settings.metrics.listen)):
        if listen is not None:
            ports[listen.port] = f"[{section}] listen"
    addresses = dict.fromkeys(etcd, "an etcd endpoint")
    addresses |= {route.gateway: "a gateway of this host" for route in facts.routes if route.gateway}
    addresses |= dict.fromkeys(facts.name_servers, "a name server of this host")
    return Refusals(ports, addresses)


def _etcd_hosts(settings: Settings) -> Iterator[tuple[str, int]]:
    for endpoint in settings.etcd.endpoints:
        where = endpoint.partition("://")[2].rstrip("/")
        name, _, port = where.rpartition(":")
        yield (name, int(port)) if name and port.isdigit() else (where, 2379)


def _etcd_addresses(settings: Settings) -> Iterator[Address]:
    for name, _ in _etcd_hosts(settings):
        try:
            yield parse(name.strip("[]"))
        except ValueError:
            continue


def _loopback(name: str) -> bool:
    try:
        address = parse(name.strip("[]"))
    except ValueError:
        return False
    return any(address in network for network in LOOPBACK)


def _finding(path: str, reason: Reason, message: str) -> Finding:
    return Finding("", 0, path, reason, message)
