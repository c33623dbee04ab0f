"""The settings of one host: the values a configuration file is read into.

Field names are the keys of the file, sections are the structs. Everything is parsed:
durations are seconds, addresses are packed, an address to listen on is None when off.
The defaults here are the defaults of the contract; docs/configuration.md explains each key.
"""

from __future__ import annotations

import enum
from pathlib import Path

import msgspec

from edgeproxy.address import Address, Network, parse_network

ETCD_PORT = 2379


class Masquerade(enum.StrEnum):
    """Which new flows to cluster IPs get the host's source address.

    remote: those from sources that are neither this host nor in `local_cidrs`.
    all: those from `local_cidrs`, too. none: no flow to a cluster IP.
    Hairpin flows and external addresses and node ports under the Cluster policy always do.
    """

    REMOTE = "remote"
    ALL = "all"
    NONE = "none"


class AcceptIn(enum.StrEnum):
    """Where accept rules of our own may be added in front of other software's drop policies."""

    NONE = "none"
    IPTABLES = "iptables"


class Listen(msgspec.Struct, frozen=True):
    """A TCP address to listen on. host: IP address or host name, `0.0.0.0` for every IPv4 address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class PortRange(msgspec.Struct, frozen=True):
    """Port numbers from `first` to `last`, both included."""

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class NodePortAddresses(msgspec.Struct, frozen=True):
    """The host addresses node ports answer on.

    networks: those inside any of these. primary: the host's primary address of each family.
    Neither: every local address.
    """

    networks: tuple[Network, ...] = ()
    primary: bool = False

    @property
    def every_local(self) -> bool:
        """Whether node ports answer on every local address."""
        return not self.networks and not self.primary


class Etcd(msgspec.Struct, frozen=True, kw_only=True):
    """`[etcd]`: where the records are. Durations in seconds; prefix ends in one slash."""

    endpoints: tuple[str, ...] = (f"http://127.0.0.1:{ETCD_PORT}",)
    prefix: str = "/services/"
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    dial_timeout: float = 5.0
    audit: float = 45 * 60.0
    start_grace: float = 60.0


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """`[node]`: who this host is.

    name: lower-case; `""` until `config.load` fills in the host name. addresses: `()` = detect.
    """

    name: str = ""
    zone: str = ""
    addresses: tuple[Address, ...] = ()


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """`[proxy]`: what is served and how. Durations in seconds."""

    service_cidrs: tuple[Network, ...] = (parse_network("10.96.0.0/16"),)
    node_port_addresses: NodePortAddresses = NodePortAddresses()
    node_port_range: PortRange = PortRange(30000, 36999)
    scheduler: str = "wrr"
    masquerade: Masquerade = Masquerade.REMOTE
    local_cidrs: tuple[Network, ...] = ()
    external_cidrs: tuple[Network, ...] = (parse_network("0.0.0.0/0"), parse_network("::/0"))
    anchor_cidrs: tuple[Network, ...] = (
        parse_network("169.254.96.0/20"),
        parse_network("fd96:6564:6765::/64"),
    )
    answer_arp: bool = False
    mark_bit: int = 14
    drain: float = 5 * 60.0
    resync: float = 30.0
    min_sync: float = 0.0
    accept_in: AcceptIn = AcceptIn.NONE


class Ipvs(msgspec.Struct, frozen=True, kw_only=True):
    """`[ipvs]`: the kernel's connection timeouts, whole seconds; None leaves the kernel's."""

    tcp_timeout: int | None = None
    tcp_fin_timeout: int | None = None
    udp_timeout: int | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`[health]`: /healthz, /livez and /readyz; None is off."""

    listen: Listen | None = Listen("0.0.0.0", 10256)


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """`[metrics]`: /metrics; None is off."""

    listen: Listen | None = Listen("127.0.0.1", 10249)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """`[state]`: the directory of lock, control socket, cordon mark and ownership list."""

    dir: Path = Path("/var/lib/edgeproxy")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a configuration file says, with defaults for what it does not."""

    etcd: Etcd = Etcd()
    node: Node = Node()
    proxy: Proxy = Proxy()
    ipvs: Ipvs = Ipvs()
    health: Health = Health()
    metrics: Metrics = Metrics()
    state: State = State()


SECTIONS: dict[str, tuple[str, ...]] = {
    "etcd": Etcd.__struct_fields__,
    "node": Node.__struct_fields__,
    "proxy": Proxy.__struct_fields__,
    "ipvs": Ipvs.__struct_fields__,
    "health": Health.__struct_fields__,
    "metrics": Metrics.__struct_fields__,
    "state": State.__struct_fields__,
}
"""The keys of each section, in the order of the documentation."""

NEEDS_RESTART = frozenset(
    {
        # Another store or prefix is another set of records: only a fresh start reads it completely first.
        *(f"etcd.{key}" for key in Etcd.__struct_fields__),
        # Flows in the kernel carry the mark and point at the anchors.
        "proxy.mark_bit",
        "proxy.anchor_cidrs",
        # The lock and the control socket live there.
        "state.dir",
    }
)
"""Keys a running daemon cannot change on reload; all others take effect at once."""


def changed(old: Settings, new: Settings) -> tuple[str, ...]:
    """The keys (`section.key`) whose values differ, in the order of the documentation."""
    return tuple(
        f"{section}.{key}"
        for section, keys in SECTIONS.items()
        for key in keys
        if getattr(getattr(old, section), key) != getattr(getattr(new, section), key)
    )


def restart_needed(old: Settings, new: Settings) -> tuple[str, ...]:
    """The changed keys (`section.key`) that take effect only after a restart."""
    return tuple(key for key in changed(old, new) if key in NEEDS_RESTART)
