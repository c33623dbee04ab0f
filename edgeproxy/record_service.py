"""Service records: the Kubernetes ServiceSpec as far as a proxy acts on it, and two fields of our own."""

from __future__ import annotations

import re
from sys import intern

from edgeproxy.address import Address, Network, is_ipv4, parse, parse_network, text
from edgeproxy.model import Protocol
from edgeproxy.record_json import WirePort, WireService, service_fields, shown
from edgeproxy.record_values import MAX_PORT, Problems, changed_at, special
from edgeproxy.records import (
    Parsed,
    Problem,
    Service,
    ServicePort,
    ServiceType,
    TrafficDistribution,
    TrafficPolicy,
)

DEFAULT_AFFINITY = 10800
MAX_AFFINITY = 86400
MAX_DRAIN = 7 * 86400
MAX_FRONTENDS = 16384

_TYPES = {each.value: each for each in ServiceType}
_POLICIES = {each.value: each for each in TrafficPolicy}
_PROTOCOLS = {each.name: each for each in Protocol}
_DISTRIBUTIONS = {
    "PreferClose": TrafficDistribution.SAME_ZONE,
    "PreferSameZone": TrafficDistribution.SAME_ZONE,
    "PreferSameNode": TrafficDistribution.SAME_NODE,
}
_PORT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SCHEDULER = re.compile(r"[a-z][a-z0-9_-]{0,14}")


def service_from_json(value: bytes) -> Parsed[Service]:
    """Read a service record; never raises, whatever the bytes are."""
    fields, shape = service_fields(value)
    if fields is None:
        return Parsed(None, tuple(shape))
    problems = Problems(shape)
    if fields.ports is None and (manifest := problems.shape_warning("")) is not None:
        return Parsed(None, (Problem("", manifest.message, reason=manifest.reason),))
    kind = problems.choice("type", fields.type, _TYPES, ServiceType.CLUSTER_IP)
    cluster_ips = _cluster_ips(fields, problems)
    load_balancer_ips = _addresses("loadBalancerIPs", fields.loadBalancerIPs, problems)
    external_ips = _addresses("externalIPs", fields.externalIPs, problems)
    external_ips = _disjoint(cluster_ips, external_ips, load_balancer_ips, problems)
    external_policy = problems.choice(
        "externalTrafficPolicy", fields.externalTrafficPolicy, _POLICIES, TrafficPolicy.CLUSTER
    )
    service = Service(
        ports=_ports(fields, kind, problems),
        cluster_ips=cluster_ips,
        external_ips=external_ips,
        load_balancer_ips=load_balancer_ips,
        source_ranges=_source_ranges(fields, problems),
        type=kind,
        external_policy=external_policy,
        internal_policy=problems.choice(
            "internalTrafficPolicy", fields.internalTrafficPolicy, _POLICIES, TrafficPolicy.CLUSTER
        ),
        traffic_distribution=problems.choice(
            "trafficDistribution", fields.trafficDistribution, _DISTRIBUTIONS, TrafficDistribution.NONE
        ),
        affinity_timeout=_affinity(fields, problems),
        health_check_node_port=problems.within(
            "healthCheckNodePort", fields.healthCheckNodePort or 0, 0, MAX_PORT
        ),
        publish_not_ready=fields.publishNotReadyAddresses is True,
        scheduler=_scheduler(fields.scheduler, problems),
        drain_seconds=_drain(fields.drainSeconds, problems),
        changed_at=changed_at(fields.changedAt, problems) if fields.changedAt else 0.0,
    )
    _whole(service, problems)
    return Parsed(None if problems.fatal else service, problems.listed())


def _address(path: str, found: str, problems: Problems) -> Address | None:
    try:
        address = parse(found)
    except ValueError:
        problems.error(path, f"expected an IP address, found {shown(found)}")
        return None
    if kind := special(address):
        problems.error(path, f"expected an address clients can call, found {found}, which is {kind}")
        return None
    return address


def _addresses(field: str, found: list[str | None] | None, problems: Problems) -> tuple[Address, ...]:
    """The addresses of a list, sorted, IPv4 first, each once."""
    addresses: dict[Address, int] = {}
    for index, item in enumerate(found or ()):
        address = None if item is None else _address(f"{field}[{index}]", item, problems)
        if address is None:
            continue
        if address in addresses:
            problems.warn(
                f"{field}[{index}]", f"{item} is already at {field}[{addresses[address]}]; once is enough"
            )
        addresses.setdefault(address, index)
    return tuple(sorted(addresses, key=lambda address: (len(address), address)))


def _cluster_ips(fields: WireService, problems: Problems) -> tuple[Address, ...]:
    """The cluster IPs, IPv4 first; `None`, an empty text and an absent field all mean none."""
    listed = [item for item in fields.clusterIPs or () if item is not None]
    if fields.clusterIP and fields.clusterIP != "None":
        first = _address("clusterIP", fields.clusterIP, problems)
        if not listed:
            return () if first is None else (first,)
        if first is not None and fields.clusterIP != listed[0] and _differs(first, listed[0]):
            message = f"expected the same as clusterIPs[0], {shown(listed[0])}; found {fields.clusterIP}"
            problems.error("clusterIP", message)
    elif fields.clusterIP == "None" and listed and listed != ["None"]:
        problems.error("clusterIP", f"expected the same as clusterIPs[0], {shown(listed[0])}; found None")
    addresses: list[Address] = []
    for index, item in enumerate(listed):
        if item in ("", "None"):
            continue
        path = f"clusterIPs[{index}]"
        address = _address(path, item, problems)
        if address is None:
            continue
        if any(is_ipv4(address) == is_ipv4(other) for other in addresses):
            family = "IPv4" if is_ipv4(address) else "IPv6"
            problems.error(
                path, f"expected at most one address per family, found a second of {family}, {item}"
            )
        addresses.append(address)
    return tuple(sorted(addresses, key=len))


def _differs(address: Address, other: str) -> bool:
    try:
        return parse(other) != address
    except ValueError:
        return True


def _disjoint(
    cluster_ips: tuple[Address, ...],
    external_ips: tuple[Address, ...],
    load_balancer_ips: tuple[Address, ...],
    problems: Problems,
) -> tuple[Address, ...]:
    """The external IPs that are not load balancer IPs, too: those have the source ranges."""
    for field, addresses in (("externalIPs", external_ips), ("loadBalancerIPs", load_balancer_ips)):
        for address in addresses:
            if address in cluster_ips:
                message = f"expected another address than the cluster IP, found {text(address)} in both"
                problems.error(field, message)
    for address in external_ips:
        if address in load_balancer_ips:
            message = f"{text(address)} is in loadBalancerIPs, too, whose rules apply to it"
            problems.warn("externalIPs", message)
    return tuple(address for address in external_ips if address not in load_balancer_ips)


def _ports(fields: WireService, kind: ServiceType, problems: Problems) -> tuple[ServicePort, ...]:
    given = [(index, port) for index, port in enumerate(fields.ports or ()) if port is not None]
    ports = tuple(_port(f"ports[{index}]", port, problems) for index, port in given)
    if not ports and kind is not ServiceType.EXTERNAL_NAME and fields.clusterIP != "None":
        problems.error("ports", 'expected at least one port such as [{"port": 80}], found none')
    if len(ports) > 1:
        _judge_together([index for index, _ in given], ports, problems)
    return ports


def _port(path: str, port: WirePort, problems: Problems) -> ServicePort:
    name = intern(port.name or "")
    if name and not _PORT_NAME.fullmatch(name):
        message = f"expected a name of a-z, 0-9 and -, at most 63 characters; found {shown(name)}"
        problems.error(f"{path}.name", message)
    number = port.port or 0
    if port.port is None:
        problems.error(f"{path}.port", f"expected a number from 1 to {MAX_PORT}, found none")
    else:
        problems.within(f"{path}.port", number, 1, MAX_PORT)
    target = number if port.targetPort is None else port.targetPort
    if isinstance(target, str):
        if not _PORT_NAME.fullmatch(target) or target.isdecimal():
            advice = ": leave out the quotes" if target.isdecimal() else ""
            message = f"expected a port number or the name of an endpoint port, found {shown(target)}{advice}"
            problems.error(f"{path}.targetPort", message)
        target = intern(target)
    elif port.targetPort is not None:
        problems.within(f"{path}.targetPort", target, 1, MAX_PORT)
    return ServicePort(
        port=number,
        target_port=target,
        name=name,
        protocol=problems.choice(f"{path}.protocol", port.protocol, _PROTOCOLS, Protocol.TCP),
        node_port=problems.within(f"{path}.nodePort", port.nodePort or 0, 0, MAX_PORT),
    )


def _judge_together(indexes: list[int], ports: tuple[ServicePort, ...], problems: Problems) -> None:
    """Names are required and unique, and so are (protocol, port) and (protocol, node port)."""
    seen: dict[tuple[str, object, object], int] = {}
    for index, port in zip(indexes, ports, strict=True):
        path = f"ports[{index}]"
        if not port.name:
            problems.error(f"{path}.name", "expected a name, as the service has several ports; found none")
        elif (first := seen.setdefault(("name", port.name, ""), index)) != index:
            problems.error(f"{path}.name", f"expected a name of its own, found that of ports[{first}]")
        protocol = port.protocol.name
        first = seen.setdefault(("port", protocol, port.port), index)
        if port.port and first != index:
            message = f"expected a port of its own, found {protocol} {port.port} like ports[{first}]"
            problems.error(f"{path}.port", message)
        first = seen.setdefault(("nodePort", protocol, port.node_port), index)
        if port.node_port and first != index:
            message = (
                f"expected a node port of its own, found {protocol} {port.node_port} like ports[{first}]"
            )
            problems.error(f"{path}.nodePort", message)


def _source_ranges(fields: WireService, problems: Problems) -> tuple[Network, ...]:
    networks: set[Network] = set()
    for index, item in enumerate(fields.loadBalancerSourceRanges or ()):
        if item is None:
            continue
        try:
            networks.add(parse_network(item.strip()))
        except ValueError as error:
            problems.error(f"loadBalancerSourceRanges[{index}]", f"expected a CIDR: {error}")
    return tuple(sorted(networks))


def _affinity(fields: WireService, problems: Problems) -> int:
    client_ip = fields.sessionAffinityConfig and fields.sessionAffinityConfig.clientIP
    timeout = client_ip.timeoutSeconds if client_ip else None
    path = "sessionAffinityConfig.clientIP.timeoutSeconds"
    if timeout is not None:
        problems.within(path, timeout, 1, MAX_AFFINITY)
    match fields.sessionAffinity:
        case "ClientIP":
            return DEFAULT_AFFINITY if timeout is None else timeout
        case None | "None":
            if timeout is not None:
                problems.warn(path, "has no effect without sessionAffinity ClientIP")
        case other:
            problems.error("sessionAffinity", f"expected one of None, ClientIP; found {shown(other)}")
    return 0


def _scheduler(name: str | None, problems: Problems) -> str:
    if name and not _SCHEDULER.fullmatch(name):
        message = (
            f"expected the name of an IPVS scheduler such as rr, wrr, lc, wlc, sh or mh; found {shown(name)}"
        )
        problems.error("scheduler", message)
    return intern(name or "")


def _drain(seconds: int | None, problems: Problems) -> int | None:
    return None if seconds is None else problems.within("drainSeconds", seconds, 0, MAX_DRAIN)


def _whole(service: Service, problems: Problems) -> None:
    """What only shows in the whole record."""
    health = service.health_check_port
    for index, port in enumerate(service.ports):
        if health and port.protocol is Protocol.TCP and port.node_port == health:
            message = f"expected a port of its own, found {health} like ports[{index}].nodePort"
            problems.error("healthCheckNodePort", message)
    addresses = len(service.cluster_ips) + len(service.external_ips) + len(service.load_balancer_ips)
    if addresses * len(service.ports) > MAX_FRONTENDS:
        message = (
            f"expected at most {MAX_FRONTENDS} pairs of address and port,"
            f" found {addresses} addresses of {len(service.ports)} ports"
        )
        problems.error("ports", message)
