"""What the records in the store mean: services, endpoints, and what can be wrong with them.

A record is read in three steps, each a module of its own::

    record_keys      key    -> which service, which endpoint
    record_json      bytes  -> fields of the right JSON type, every wrong one listed
    record_service,
    record_endpoint  fields -> Service, Endpoint: ranges, names, duplicates, special addresses

Service fields are those of the Kubernetes ServiceSpec. What needs configuration to judge (node
port range, external CIDRs, conflicts between records) is not decided here.
"""

from __future__ import annotations

import enum
from typing import Generic, TypeVar

import msgspec

from edgeproxy.address import Address, Network
from edgeproxy.model import Protocol, Reason


class ServiceType(enum.Enum):
    """Only EXTERNAL_NAME (serves nothing) and LOAD_BALANCER (health check port) change anything."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class TrafficPolicy(enum.Enum):
    """Whether all endpoints may serve or only those of this node."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


class TrafficDistribution(enum.Enum):
    """Which endpoints are preferred; `PreferClose` is the old name of SAME_ZONE (KEP-3015)."""

    NONE = ""
    SAME_ZONE = "PreferSameZone"
    SAME_NODE = "PreferSameNode"


class ServicePort(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One port of a service.

    name: "" where the only port has none.
    target_port: port number on the endpoint, or the name of an endpoint port.
    node_port: port opened on the host's own addresses, 0 for none.
    """

    port: int
    target_port: int | str
    name: str = ""
    protocol: Protocol = Protocol.TCP
    node_port: int = 0


class Service(msgspec.Struct, frozen=True, array_like=True):
    """A service record that can be used.

    cluster_ips: at most one per family; () for a service of node ports only.
    external_ips, load_balancer_ips: disjoint; source ranges apply to the latter alone.
    affinity_timeout: seconds a client sticks to its endpoint, 0 for no affinity.
    health_check_node_port: 0 for none; see :meth:`health_check_port`.
    scheduler: name of an IPVS scheduler, "" for the configured one.
    drain_seconds: how long a removed endpoint keeps its connections; None for the configured one.
    changed_at: when the writer changed the record, seconds since the epoch; 0.0 where it did not say.
    """

    ports: tuple[ServicePort, ...] = ()
    cluster_ips: tuple[Address, ...] = ()
    external_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()
    source_ranges: tuple[Network, ...] = ()
    type: ServiceType = ServiceType.CLUSTER_IP
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    traffic_distribution: TrafficDistribution = TrafficDistribution.NONE
    affinity_timeout: int = 0
    health_check_node_port: int = 0
    publish_not_ready: bool = False
    scheduler: str = ""
    drain_seconds: int | None = None
    changed_at: float = 0.0

    @property
    def serves(self) -> bool:
        """Whether the record asks for anything in the kernel; an ExternalName never does."""
        return self.type is not ServiceType.EXTERNAL_NAME and bool(self.ports)

    @property
    def health_check_port(self) -> int:
        """The port a load balancer's health checks are answered on, 0 for none.

        Only a LoadBalancer with externalTrafficPolicy Local has one (kube-proxy, serviceport.go).
        """
        wanted = self.type is ServiceType.LOAD_BALANCER and self.external_policy is TrafficPolicy.LOCAL
        return self.health_check_node_port if wanted else 0


class Endpoint(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An endpoint record that can be used.

    port: 0 where the record names none; ports: (name, number) sorted by name. Which one counts
        for a service port is decided by :func:`edgeproxy.selection.resolve_port`.
    node_name, zone: "" where unknown; the node name is trimmed and in lower case.
    weight: 0 takes no new connections.
    zone_hints, node_hints: zones and nodes whose clients should come here; () for no hint.
    changed_at: as in :class:`Service`.
    """

    address: Address
    port: int = 0
    ports: tuple[tuple[str, int], ...] = ()
    node_name: str = ""
    zone: str = ""
    weight: int = 1
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()
    changed_at: float = 0.0


class Severity(enum.Enum):
    """An error makes the record unusable; a warning never does."""

    ERROR = "error"
    WARNING = "warning"


class Problem(msgspec.Struct, frozen=True, gc=False):
    """One thing wrong with a value.

    path: JSON path inside the value (`ports[0].nodePort`), "" for the whole.
    message: what was expected and what was found.
    """

    path: str
    message: str
    severity: Severity = Severity.ERROR
    reason: Reason = Reason.BAD_RECORD


Record = TypeVar("Record", Service, Endpoint)


class Parsed(msgspec.Struct, Generic[Record], frozen=True, gc=False):
    """A value that was read: the record, unless a problem is an error, and all its problems."""

    record: Record | None
    problems: tuple[Problem, ...] = ()
