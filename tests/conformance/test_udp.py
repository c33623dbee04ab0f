"""UDP senders that go on sending, and what becomes of their flows: KP-180 to KP-196."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping

import pytest

from edgeproxy.address import parse, text
from edgeproxy.kernel.conntrack import Conntrack, Flow, Selection
from edgeproxy.model import Protocol
from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, Records, endpoint, service
from tests.lab.echo import Answer, Conversation, Failure, ask_udp, converse
from tests.lab.namespace import Host
from tests.lab.wait import until

_ports = itertools.count(42000)


class Sender:
    """A client that sends from one port, as a resolver or a log shipper does: one flow for ever."""

    def __init__(self, machine: Host, address: str, port: int) -> None:
        self.source_port = next(_ports)
        self._machine, self._address, self._port = machine, address, port

    def ask(self, timeout: float = 3.0) -> str | Failure:
        """Sends a datagram; who answered."""
        answer = ask_udp(
            self._machine, self._address, self._port, source_port=self.source_port, timeout=timeout
        )
        return answer.backend if isinstance(answer, Answer) else answer

    def settle_on(self, backend: str) -> None:
        """Takes other source ports until one is balanced to that backend."""
        for _ in range(8):
            if self.ask() == backend:
                return
            self.source_port = next(_ports)
        raise AssertionError(f"no flow to {self._address} reached {backend}")

    def flow(self, host: Host) -> Flow | None:
        """Its tracked flow on a host."""
        found = [flow for flow in flows(host) if flow.original.source_port == self.source_port]
        return found[0] if found else None


def flows(host: Host, protocol: Protocol = Protocol.UDP) -> list[Flow]:
    """The tracked flows of IPv4 on a host."""

    def read() -> list[Flow]:
        with Conntrack() as conntrack:
            return list(conntrack.flows(Selection(socket.AF_INET, protocol)))

    return host.in_namespace(read)


def dns(fleet: Fleet, endpoints: Mapping[str, Mapping[str, object]], **fields: object) -> Records:
    """A UDP service with every kind of frontend; two requests meet two endpoints."""
    spec = {
        "clusterIP": "10.96.0.53",
        "externalIPs": ["203.0.113.253"],
        "loadBalancerIPs": ["203.0.113.254"],
        "ports": [{"port": 53, "protocol": "UDP", "nodePort": 36053}],
        "scheduler": "rr",
        **fields,
    }
    return service("dns", spec, endpoints)


def both(fleet: Fleet) -> dict[str, Mapping[str, object]]:
    return {"a": endpoint(fleet.backends[0]), "b": endpoint(fleet.backends[1])}


FRONTENDS = (
    ("10.96.0.53", 53),
    ("203.0.113.253", 53),
    ("203.0.113.254", 53),
    ("10.1.0.11", 36053),
    ("10.1.1.11", 36053),
)
"""Cluster IP, external, load balancer, and the node port at two addresses of host0."""


@kp("KP-180", "UDP flows through a service address to an endpoint that is deleted are removed")
@kp("KP-181", "UDP flows to an endpoint that serves are kept")
@kp("KP-183", "The same for node ports, on whatever address of the host")
@pytest.mark.parametrize("how", ["deleted", "not serving"])
@kp("KP-182", "UDP flows to an endpoint whose record stays but which does not serve any more are removed")
def test_kp_180_flows_to_an_endpoint_that_goes(fleet: Fleet, how: str) -> None:
    host = fleet.hosts[0]
    fleet.put(dns(fleet, both(fleet)))
    leaving = [Sender(fleet.client, *frontend) for frontend in FRONTENDS]
    staying = [Sender(fleet.client, *frontend) for frontend in FRONTENDS]
    for sender in leaving:
        sender.settle_on("a")
    for sender in staying:
        sender.settle_on("b")
    before = [sender.flow(host) for sender in staying]
    assert None not in [*before, *(sender.flow(host) for sender in leaving)]

    gone = None if how == "deleted" else endpoint(fleet.backends[0], ready=False, serving=False)
    fleet.put({"/services/dns/endpoints/a": gone})
    assert [sender.flow(host) for sender in leaving] == [None] * len(leaving)
    after = [sender.flow(host) for sender in staying]
    assert [flow.id for flow in after if flow] == [flow.id for flow in before if flow]
    assert [sender.ask() for sender in (*leaving, *staying)] == ["b"] * len(FRONTENDS) * 2


@kp("KP-184", "An established TCP connection to an endpoint that leaves stays in connection tracking")
def test_kp_184_tcp(fleet: Fleet) -> None:
    """SCTP is in test_flows.py: IPVS itself ends its associations with the real server."""
    address, host = fleet.cluster_ip(), fleet.hosts[0]
    spec = {"clusterIP": address, "ports": [{"port": 80}]}
    fleet.put(service("web", spec, {"a": endpoint(fleet.backends[0])}))
    conversation = converse(fleet.client, address, 80)
    assert isinstance(conversation, Conversation)
    with conversation:
        assert isinstance(conversation.say(), Answer)
        [before] = tracked(host, address)
        fleet.put({"/services/web/endpoints/a": None})
        assert tracked(host, address) == [before]
        assert isinstance(conversation.say("drains"), Answer)


def tracked(host: Host, address: str) -> list[int]:
    """The ids of the TCP flows to an address."""
    return [f.id for f in flows(host, Protocol.TCP) if text(f.original.destination) == address]


@kp("KP-191", "A sender to a cluster IP goes on with another endpoint when its own is exchanged")
def test_kp_191_an_endpoint_is_exchanged(fleet: Fleet) -> None:
    address = fleet.cluster_ip()
    spec = {"clusterIP": address, "ports": [{"port": 53, "protocol": "UDP"}]}
    fleet.put(service("dns", spec, {"a": endpoint(fleet.backends[0])}))
    sender = Sender(fleet.client, address, 53)
    assert sender.ask() == "a"
    fleet.put({"/services/dns/endpoints/a": None, "/services/dns/endpoints/b": endpoint(fleet.backends[1])})
    assert sender.ask() == "b"


@kp("KP-193", "A process of the host that sends while there is no endpoint gets through once there is one")
def test_kp_193_the_first_endpoint_comes(fleet: Fleet) -> None:
    address = fleet.cluster_ip()
    unready = endpoint(fleet.backends[0], ready=False)
    spec = {"clusterIP": address, "ports": [{"port": 53, "protocol": "UDP", "nodePort": 36054}]}
    fleet.put(service("dns", spec, {"a": unready}))
    host = fleet.hosts[0]
    senders = [
        Sender(host, address, 53),
        Sender(host, host.address4, 36054),
        Sender(fleet.client, address, 53),
    ]
    # The kernel tells a process of the host that its packet was dropped (EPERM), a client by ICMP.
    assert senders[-1].ask() is Failure.REFUSED
    assert {sender.ask() for sender in senders} <= {Failure.REFUSED, Failure.UNREACHABLE}
    fleet.put({"/services/dns/endpoints/a": endpoint(fleet.backends[0])})
    for sender in senders:
        until(lambda sender=sender: sender.ask(1.0) == "a", 20, "the sender gets through")


@kp("KP-194", "A sender follows when the endpoint's port changes")
def test_kp_194_the_target_port_changes(fleet: Fleet) -> None:
    address, backend = fleet.cluster_ip(), fleet.backends[0]
    spec = {"clusterIP": address, "ports": [{"port": 53, "protocol": "UDP"}]}
    fleet.put(service("dns", spec, {"a": endpoint(backend, port=53)}))
    port = next(_ports)
    for number in (53, 5353):
        fleet.put({"/services/dns/endpoints/a": endpoint(backend, port=number)})
        answer = ask_udp(fleet.client, address, 53, source_port=port)
        assert isinstance(answer, Answer)
        assert answer.local_port == number


@kp("KP-196", "UDP flows to an endpoint that terminates but still serves are kept; new ones go elsewhere")
@pytest.mark.parametrize("frontend", [FRONTENDS[0], FRONTENDS[3]])
def test_kp_196_terminating_but_serving(fleet: Fleet, frontend: tuple[str, int]) -> None:
    host = fleet.hosts[0]
    fleet.put(dns(fleet, both(fleet)))
    sender = Sender(fleet.client, *frontend)
    sender.settle_on("a")
    before = sender.flow(host)
    terminating = endpoint(fleet.backends[0], ready=False, serving=True, terminating=True)
    fleet.put({"/services/dns/endpoints/a": terminating})
    assert sender.ask() == "a"
    after = sender.flow(host)
    assert before is not None
    assert after is not None
    assert after.id == before.id
    assert {Sender(fleet.client, *frontend).ask() for _ in range(3)} == {"b"}

    fleet.put({"/services/dns/endpoints/a": None})
    assert sender.ask() == "b"
    assert parse(fleet.backends[0].address4) not in {flow.reply.source for flow in flows(host)}
