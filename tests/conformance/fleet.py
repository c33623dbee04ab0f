"""A client, two proxy hosts with running daemons, and three backends; see `tests/lab/topology.py`.

    client 10.1.0.2 ── host0 .11 (zone east) ── a 10.1.1.2, c 10.1.3.2   on host0
                    └─ host1 .12 (zone west) ── b 10.1.2.2               on host1

Every backend is a *local workload* of its host (its network is in `local_cidrs`) and an endpoint;
as in a cluster, replies to a workload go back through the workload's own host. The client reaches
service addresses through host0, except 10.97.0.0/16 and 198.51.100.0/24, which go to host1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from tests.lab.daemon import Daemon
from tests.lab.echo import Answer, EchoServers, Failure, Listener, ask_tcp
from tests.lab.etcd import Etcd
from tests.lab.namespace import Host
from tests.lab.topology import FIRST_HOST, Topology
from tests.lab.wait import until

Ask = Callable[..., Answer | Failure]
Records = dict[str, "str | Mapping[str, object] | None"]
Section = Mapping[str, object]
ZONES = ("east", "west")
READY_SECONDS = 180.0
BARRIER = "/services/barrier/endpoints/a"


def endpoint(backend: Host, family: int = 4, **fields: object) -> dict[str, object]:
    """The record of a backend; its host is its gateway, as in the drawing above."""
    address = backend.address4 if family == 4 else backend.address6
    return {"address": address, "nodeName": backend.gateway, **fields}


def service(
    name: str, spec: Mapping[str, object], endpoints: Mapping[str, str | Mapping[str, object]] | None = None
) -> Records:
    """The records of one service: a Service and its Endpoints by name."""
    key = f"/services/{name}"
    return {key: spec, **{f"{key}/endpoints/{each}": value for each, value in (endpoints or {}).items()}}


def answers(machine: Host, address: str, port: int, count: int = 4, ask: Ask = ask_tcp) -> list[Answer]:
    """The answers to some requests, each over a connection of its own; every one must succeed."""
    found = [ask(machine, address, port) for _ in range(count)]
    assert all(isinstance(answer, Answer) for answer in found), f"{machine.name} asks {address}: {found}"
    return [answer for answer in found if isinstance(answer, Answer)]


def names(found: list[Answer]) -> set[str]:
    """Who answered."""
    return {answer.backend for answer in found}


def sources(found: list[Answer]) -> set[str]:
    """Whom the backends saw."""
    return {answer.source for answer in found}


REFUSALS = (Failure.REFUSED, Failure.UNREACHABLE)
"""How UDP is refused: an ICMP message, or for a host process EPERM from send(2), as IPVS drops what it refuses."""


class Fleet:
    """See the module's text. `put` writes records and waits until both hosts have applied them."""

    def __init__(self) -> None:
        self.net = Topology(hosts=2, backends=3)
        self.client, self.hosts, self.backends = self.net.client, self.net.hosts, self.net.backends
        self.etcd: Etcd
        self.servers: EchoServers
        self.daemons: list[Daemon] = []
        self._listeners: dict[str, list[Listener]] = {}
        self._stack = ExitStack()
        self._numbers = itertools.count(1)
        self._written: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.net)
            self._add_routes()
            for host in self.hosts:
                # IPVS refuses with ICMP; the kernel sends one client a burst of six, then one a second.
                host.sysctl("net.ipv4.icmp_ratelimit", 0)
                host.sysctl("net.ipv6.icmp.ratelimit", 0)
            self.etcd = stack.enter_context(Etcd(self.net.store))
            self.servers = stack.enter_context(EchoServers())
            for backend in self.backends:
                ports = self.servers.listen(backend, tcp=[80, 8080], udp=[53, 5353], sctp=[3868])
                self._listeners[backend.name] = ports
            for number, host in enumerate(self.hosts):
                daemon = Daemon(host, self.etcd, self._settings(number))
                stack.callback(daemon.close)
                daemon.start(wait=False)
                self.daemons.append(daemon)
            until(
                lambda: all(d.is_ready() for d in self.daemons), READY_SECONDS, "both daemons are ready", 0.1
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def put(self, records: Mapping[str, str | Mapping[str, object] | None]) -> None:
        """Writes records (None deletes) in one transaction; both hosts have applied them on return."""
        self._written |= records.keys()
        self.settled(self.etcd.write(records))

    def settled(self, revision: int = 0) -> None:
        """Waits until both hosts have applied a revision (default: the store's newest)."""
        wanted = revision or self.etcd.revision()
        for daemon in self.daemons:
            if daemon.process is not None:
                daemon.settled(wanted)

    def forget(self) -> None:
        """Deletes all records that were put."""
        if self._written:
            self.put(dict.fromkeys(self._written))
            self._written.clear()

    @contextmanager
    def configured(self, number: int, **sections: Section) -> Iterator[None]:
        """Host `number` runs with other settings meanwhile: `configured(0, proxy={...})`."""
        self._reconfigure(number, self._settings(number, **sections))
        try:
            yield
        finally:
            self._reconfigure(number, self._settings(number))

    def _reconfigure(self, number: int, settings: Mapping[str, Section]) -> None:
        daemon = self.daemons[number]
        daemon.configure(settings)
        before = daemon.output().count("configuration reloaded")
        daemon.reload()
        assert daemon.output().count("configuration reloaded") == before + 1, daemon.output()[-1000:]
        # What is written after the reload is in force together with it, or later.
        daemon.settled(self.etcd.put(BARRIER, endpoint(self.backends[0])))

    @contextmanager
    def servers_on(
        self, machine: Host, name: str = "", *, tcp: Sequence[int] = (), udp: Sequence[int] = ()
    ) -> Iterator[list[Listener]]:
        """Echo servers that are there for one test."""
        listeners = self.servers.listen(machine, name, tcp=tcp, udp=udp)
        try:
            yield listeners
        finally:
            for listener in listeners:
                listener.close()

    def cluster_ip(self, family: int = 4, number: int = 0) -> str:
        """An unused address of the service CIDRs; the client calls it on host `number` (IPv6: on host0)."""
        free = next(self._numbers)
        return f"10.{96 + number}.{1 + free // 250}.{1 + free % 250}" if family == 4 else f"fd00:96::{free:x}"

    def external_ip(self, number: int = 0, family: int = 4) -> str:
        """An unused address that no machine has; the client calls it on host `number`."""
        free = 1 + next(self._numbers) % 250
        if family == 4:
            return f"{('203.0.113', '198.51.100')[number]}.{free}"
        return f"2001:db8:{number}::{free:x}"

    def node_port(self) -> int:
        """An unused node port."""
        return 31000 + next(self._numbers)

    def requests(self, backend: str) -> int:
        """How many connections and requests a backend has seen so far."""
        return sum(listener.connections + listener.requests for listener in self._listeners[backend])

    def own4(self, number: int = 0) -> set[str]:
        """All IPv4 addresses of host `number`: those that a masqueraded flow may come from."""
        position = FIRST_HOST + number
        return {f"{network}.{position}" for network in ("10.1.0", "10.1.1", "10.1.2", "10.1.3", "10.255.0")}

    def own6(self, number: int = 0) -> set[str]:
        """The same for IPv6."""
        position = FIRST_HOST + number
        return {f"fd00:{network}::{position}" for network in ("1", "1:1", "1:2", "1:3", "255")}

    def _settings(self, number: int, **sections: Section) -> dict[str, dict[str, object]]:
        workloads = [b for b in self.backends if b.gateway == self.hosts[number].name]
        settings: dict[str, dict[str, object]] = {
            "node": {"name": self.hosts[number].name, "zone": ZONES[number]},
            "proxy": {
                "service_cidrs": ["10.96.0.0/16", "10.97.0.0/16", "fd00:96::/112"],
                "local_cidrs": [n for backend in workloads for n in _networks(backend)],
            },
        }
        for name, keys in sections.items():
            settings.setdefault(name, {}).update(keys)
        return settings

    def _add_routes(self) -> None:
        """The client's ways to service addresses; workloads' ways to each other, through their hosts."""
        near, far = self.hosts
        self.client.ip(
            f"route add 10.96.0.0/16 via {near.address4}",
            f"route add fd00:96::/112 via {near.address6}",
            f"route add 10.97.0.0/16 via {far.address4}",
            f"route add 198.51.100.0/24 via {far.address4}",
            f"route add 2001:db8:1::/48 via {far.address6}",
        )
        for one, other in itertools.permutations(self.backends, 2):
            number = next(n for n, host in enumerate(self.hosts) if host.name == other.gateway)
            (network4, network6), (own4, own6) = _networks(other), _networks(one)
            via4 = own4.replace(".0/24", f".{FIRST_HOST + number}")
            via6 = own6.replace("::/64", f"::{FIRST_HOST + number}")
            one.ip(f"route add {network4} via {via4}", f"route add {network6} via {via6}")


def _networks(backend: Host) -> tuple[str, str]:
    """The networks of both families that a backend is on."""
    return backend.address4.rpartition(".")[0] + ".0/24", backend.address6.rpartition("::")[0] + "::/64"
