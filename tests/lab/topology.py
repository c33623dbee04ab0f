"""Networks of a test: a client, proxy hosts and backends in network namespaces.

    with Topology(hosts=2, backends=2) as net:
        net.hosts[0].run(["edgeproxy", "run", ...])
        ask_tcp(net.client, "10.96.0.10", 8000)

Routed (the default): every backend is on a segment of its own, all proxy hosts are on all of them.

                        10.1.0.0/24           10.1.1.0/24
    client 10.1.0.2 ────┬───── host0 .11 ─────┬──────────── a 10.1.1.2  (default route: host0)
                        └───── host1 .12 ─────┤
                                              │10.1.2.0/24
                                              └──────────── b 10.1.2.2  (default route: host1)

Flat: everybody is on 10.2.0.0/24 (client .2, hosts .11 .12, backends .101 .102), as in most fleets
of virtual machines: an answer that is not masqueraded goes straight to the client.

IPv6 is the same with fd00:1::/64, fd00:1:1::/64, ... and fd00:2::/64. In both kinds a host `store`
(10.255.0.1) is reachable from the proxy hosts only: a test's etcd runs there. The client's default
route is host0, the proxy hosts' is the client, which stands for the world outside.

Everything lives in namespaces with names of their own (the bridges, too), so several
topologies exist side by side and nothing touches the machine's own network.
"""

from __future__ import annotations

import enum
import itertools
import os
import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from types import TracebackType
from typing import Self

from tests.lab.namespace import Host, ip_batch

FIRST_HOST = 11
FIRST_FLAT_BACKEND = 101
_numbers = itertools.count()


class Kind(enum.Enum):
    """How backends are connected; see the module's text."""

    ROUTED = "routed"
    FLAT = "flat"


@dataclass(frozen=True)
class _Segment:
    """One bridge and its addresses."""

    bridge: str
    network4: str
    network6: str

    def address4(self, number: int) -> str:
        return f"{self.network4}.{number}"

    def address6(self, number: int) -> str:
        return str(IPv6Address(f"{self.network6}::{number}"))


@dataclass
class _Plan:
    """What has to be set up for one machine."""

    host: Host
    commands: list[str] = field(default_factory=list)


class Topology:
    """See the module's text. Made by `__enter__`, gone with everything in it after `__exit__`.

    client, hosts, backends, store: the machines. Backends are called a, b, c, ...; backend k has
        its default route through host k modulo the number of hosts (its `gateway`).
    """

    def __init__(self, *, hosts: int = 1, backends: int = 2, kind: Kind = Kind.ROUTED) -> None:
        self.kind = kind
        self._prefix = f"lab{os.getpid()}-{next(_numbers)}"
        self._switch = f"{self._prefix}-switch"
        self._links: list[str] = []
        self._segments: dict[str, _Segment] = {}
        front = self._segment(0)
        self.client = self._host("client", front, 2, f"host0 {FIRST_HOST}")
        self.hosts = [self._host(f"host{n}", front, FIRST_HOST + n, "client 2") for n in range(hosts)]
        self.backends = [self._backend(number) for number in range(backends)]
        store = _Segment("store", "10.255.0", "fd00:255")
        self._segments["store"] = store
        self.store = self._host("store", store, 1, "")
        self._plans: list[_Plan] = []

    @property
    def machines(self) -> list[Host]:
        """All of them."""
        return [self.client, *self.hosts, *self.backends, self.store]

    def _segment(self, number: int) -> _Segment:
        """Segment 0 is the clients', k the k-th backend's; on a flat network all are one."""
        segment = (
            _Segment("flat", "10.2.0", "fd00:2")
            if self.kind is Kind.FLAT
            else _Segment(f"seg{number}", f"10.1.{number}", f"fd00:1:{number}")
        )
        return self._segments.setdefault(segment.bridge, segment)

    def _host(self, name: str, segment: _Segment, number: int, gateway: str) -> Host:
        return Host(
            name,
            f"{self._prefix}-{name}",
            segment.address4(number),
            segment.address6(number),
            gateway.partition(" ")[0],
        )

    def _backend(self, number: int) -> Host:
        name = string.ascii_lowercase[number]
        home = number % len(self.hosts)
        position = FIRST_FLAT_BACKEND + number if self.kind is Kind.FLAT else 2
        return self._host(name, self._segment(number + 1), position, f"host{home} {FIRST_HOST + home}")

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tear_down()

    def _set_up(self) -> None:
        ip_batch(
            [f"netns add {name}" for name in (self._switch, *(host.namespace for host in self.machines))]
        )
        for host in self.machines:
            _set_sysctls(host, forwarding=host in self.hosts)
        plans = {host.name: _Plan(host, ["link set lo up"]) for host in self.machines}
        switch = [f"link add {name} type bridge forward_delay 0 mcast_snooping 0" for name in self._segments]
        front = self._segment(0)
        switch += self._attach(plans["client"], front, 2, "eth0")
        for number, host in enumerate(self.hosts):
            position = FIRST_HOST + number
            switch += self._attach(plans[host.name], front, position, "eth0")
            for segment in self._backend_segments():
                switch += self._attach(plans[host.name], segment, position, segment.bridge)
            switch += self._attach(plans[host.name], self._segments["store"], position, "store")
        for number, host in enumerate(self.backends):
            position = int(host.address4.rpartition(".")[2])
            switch += self._attach(plans[host.name], self._segment(number + 1), position, "eth0")
        switch += self._attach(plans["store"], self._segments["store"], 1, "eth0")
        ip_batch([*switch, *(f"link set {name} up" for name in self._segments)], self._switch)
        self._add_default_routes(plans)
        for plan in plans.values():
            ip_batch(plan.commands, plan.host.namespace)

    def _backend_segments(self) -> Iterable[_Segment]:
        if self.kind is Kind.ROUTED:
            for number in range(len(self.backends)):
                yield self._segment(number + 1)

    def _attach(self, plan: _Plan, segment: _Segment, number: int, device: str) -> list[str]:
        """Connects a machine to a segment: adds to its plan, returns the switch's part."""
        port = f"{segment.bridge}-{number}"
        plan.commands += [
            f"link set {device} up",
            f"addr add {segment.address4(number)}/24 dev {device}",
            f"addr add {segment.address6(number)}/64 dev {device} nodad",
        ]
        return [
            f"link add {port} type veth peer name {device} netns {plan.host.namespace}",
            f"link set {port} master {segment.bridge} up",
        ]

    def _add_default_routes(self, plans: dict[str, _Plan]) -> None:
        for number, host in enumerate(self.backends):
            position = FIRST_HOST + number % len(self.hosts)
            plans[host.name].commands += _default_routes(self._segment(number + 1), position)
        plans["client"].commands += _default_routes(self._segment(0), FIRST_HOST)
        for host in self.hosts:
            plans[host.name].commands += _default_routes(self._segment(0), 2)

    def _tear_down(self) -> None:
        for host in self.machines:
            host.end_processes()
        existing = [
            name
            for name in (*(host.namespace for host in self.machines), self._switch)
            if os.path.exists(f"/run/netns/{name}")
        ]
        ip_batch([f"netns delete {name}" for name in existing])


def _default_routes(segment: _Segment, number: int) -> list[str]:
    return [
        f"route add default via {segment.address4(number)}",
        f"route add default via {segment.address6(number)}",
    ]


def _set_sysctls(host: Host, forwarding: bool) -> None:
    """A new namespace inherits some of these from the machine's own; tests start from one state."""
    for name in ("all", "default"):
        host.sysctl(f"net.ipv4.conf.{name}.rp_filter", 0)
        host.sysctl(f"net.ipv6.conf.{name}.accept_dad", 0)
        host.sysctl(f"net.ipv6.conf.{name}.accept_ra", 0)
        host.sysctl(f"net.ipv6.conf.{name}.disable_ipv6", 0)
    host.sysctl("net.ipv4.ip_forward", int(forwarding))
    host.sysctl("net.ipv6.conf.all.forwarding", int(forwarding))
