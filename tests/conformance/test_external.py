"""External and load balancer addresses with packets: KP-120 to KP-137."""

from __future__ import annotations

import http.client
from functools import partial

import pytest

from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, Records, answers, endpoint, names, service, sources
from tests.lab.daemon import Daemon
from tests.lab.echo import Answer, Failure, ask_tcp, ask_udp
from tests.lab.wait import until

PORTS = [{"name": "tcp", "port": 80}, {"name": "udp", "port": 53, "protocol": "UDP"}]


def balanced(fleet: Fleet, name: str, address: str, *backends: int, **fields: object) -> Records:
    """A service of type LoadBalancer at one address, TCP 80 and UDP 53, at backends by number."""
    family = 6 if ":" in address else 4
    spec = {"type": "LoadBalancer", "loadBalancerIPs": [address], "ports": PORTS, **fields}
    chosen = {fleet.backends[n].name: endpoint(fleet.backends[n], family) for n in backends}
    return service(name, spec, chosen)


@kp(
    "KP-120",
    "An external address is served whether or not the host has it; an address of the host keeps its other ports",
)
@pytest.mark.parametrize("family", [4, 6])
def test_kp_120_an_address_of_the_host(fleet: Fleet, family: int) -> None:
    host = fleet.hosts[0]
    own, other = (host.address4, "10.1.1.11") if family == 4 else (host.address6, "fd00:1:1::11")
    absent = fleet.external_ip(0, family)
    spec = {"externalIPs": [own, absent], "ports": [{"port": 8000, "targetPort": 80}]}
    fleet.put(service("web", spec, {"a": endpoint(fleet.backends[0], family)}))
    with fleet.servers_on(host, "host", tcp=[8443, 8000]):
        for machine in (fleet.client, host):
            assert names(answers(machine, own, 8000, 2)) == {"a"}
            assert names(answers(machine, absent, 8000, 2)) == {"a"}
            assert names(answers(machine, own, 8443, 1)) == {"host"}
            assert names(answers(machine, other, 8000, 1)) == {"host"}
            assert ask_tcp(machine, absent, 8443) is Failure.REFUSED


@kp("KP-121", "A workload reaches an endpoint through an external address that no host has")
@pytest.mark.parametrize("family", [4, 6])
def test_kp_121_workload(fleet: Fleet, family: int) -> None:
    address = fleet.external_ip(0, family)
    both = {backend.name: endpoint(backend, family) for backend in fleet.backends[:2]}
    fleet.put(service("web", {"externalIPs": [address], "ports": PORTS}, both))
    assert names(answers(fleet.backends[2], address, 80)) == {"a", "b"}
    assert names(answers(fleet.backends[2], address, 53, ask=ask_udp)) == {"a", "b"}


@kp("KP-122", "Each of several load balancer addresses is served; removing one takes that one only")
def test_kp_122_several_addresses(fleet: Fleet) -> None:
    first, second = fleet.external_ip(), fleet.external_ip()
    fleet.put(balanced(fleet, "lb", first, 0, loadBalancerIPs=[first, second], drainSeconds=0))
    for machine in (fleet.client, fleet.hosts[0]):
        for address in (first, second):
            answers(machine, address, 80, 1)
    fleet.put(balanced(fleet, "lb", first, 0, loadBalancerIPs=[second], drainSeconds=0))
    with fleet.servers_on(fleet.client, "outside", tcp=[80]):
        # Nobody's address any more: the host's packets go where its routes lead.
        fleet.client.ip(f"addr add {first}/32 dev lo")
        try:
            assert names(answers(fleet.hosts[0], first, 80, 1)) == {"outside"}
        finally:
            fleet.client.ip(f"addr delete {first}/32 dev lo")
        assert names(answers(fleet.client, second, 80, 1)) == {"a"}


@kp(
    "KP-124",
    "With source ranges a listed client is served at the load balancer address, another gets silence",
)
@pytest.mark.parametrize("family", [4, 6])
def test_kp_124_source_ranges(fleet: Fleet, family: int) -> None:
    opened, closed = fleet.external_ip(0, family), fleet.external_ip(0, family)
    own = fleet.client.address4 if family == 4 else fleet.client.address6
    others = ["192.0.2.0/24", "10.1.0.3/32"] if family == 4 else ["2001:db8:9::/48", "fd00:1::3/128"]
    fleet.put(
        balanced(fleet, "open", opened, 0, loadBalancerSourceRanges=[*others, own])
        | balanced(fleet, "closed", closed, 0, loadBalancerSourceRanges=others)
    )
    for ask, port in ((ask_tcp, 80), (ask_udp, 53)):
        answers(fleet.client, opened, port, 1, ask)
        assert ask(fleet.client, closed, port, timeout=0.5) is Failure.TIMED_OUT


@kp(
    "KP-125", "With source ranges a workload outside them gets silence there, and is served at the cluster IP"
)
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_kp_125_a_workload_outside_the_ranges(fleet: Fleet, policy: str) -> None:
    vip, address, workload = fleet.cluster_ip(), fleet.external_ip(), fleet.backends[2]
    fields = {"clusterIP": vip, "loadBalancerSourceRanges": ["10.1.0.0/24"], "externalTrafficPolicy": policy}
    fleet.put(balanced(fleet, "lb", address, 0, **fields))
    assert ask_tcp(workload, address, 80, timeout=0.5) is Failure.TIMED_OUT
    answers(workload, vip, 80, 1)
    answers(fleet.client, address, 80, 1)


@kp("KP-126", "Source ranges do not cover node ports")
def test_kp_126_node_ports_are_open(fleet: Fleet) -> None:
    address, port = fleet.external_ip(), fleet.node_port()
    fields = {"loadBalancerSourceRanges": ["192.0.2.0/24"], "ports": [{"port": 80, "nodePort": port}]}
    fleet.put(balanced(fleet, "lb", address, 0, **fields))
    assert ask_tcp(fleet.client, address, 80, timeout=0.5) is Failure.TIMED_OUT
    answers(fleet.client, fleet.hosts[0].address4, port, 1)


@kp(
    "KP-127", "A host process is served at a load balancer address if a range contains the host, else blocked"
)
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_kp_127_host_processes_and_ranges(fleet: Fleet, policy: str) -> None:
    opened, closed, host = fleet.external_ip(), fleet.external_ip(), fleet.hosts[0]
    local = {"externalTrafficPolicy": policy}
    fleet.put(
        balanced(fleet, "open", opened, 0, loadBalancerSourceRanges=[host.address4], **local)
        | balanced(fleet, "closed", closed, 0, loadBalancerSourceRanges=["192.0.2.0/24"], **local)
    )
    answers(host, opened, 80, 1)
    assert ask_tcp(host, closed, 80, timeout=0.5) is Failure.TIMED_OUT


@kp("KP-129", "Under Cluster a workload at a load balancer address gets all endpoints and is masqueraded")
def test_kp_129_workload_under_cluster(fleet: Fleet) -> None:
    address = fleet.external_ip()
    fleet.put(balanced(fleet, "lb", address, 0, 1))
    found = answers(fleet.backends[2], address, 80)
    assert names(found) == {"a", "b"}
    assert sources(found) <= fleet.own4()


@kp(
    "KP-130",
    "Under Local a workload at a load balancer address gets all endpoints and keeps its source address",
    differs="local endpoints only: there is one list for all clients",
)
@pytest.mark.parametrize("family", [4, 6])
def test_kp_130_workload_under_local(fleet: Fleet, family: int) -> None:
    address, workload = fleet.external_ip(0, family), fleet.backends[2]
    fleet.put(balanced(fleet, "lb", address, 0, 1, externalTrafficPolicy="Local"))
    found = answers(workload, address, 80)
    assert names(found) == {"a", "b"}
    assert sources(found) == {workload.address4 if family == 4 else workload.address6}
    # The outside gets the local one.
    assert names(answers(fleet.client, address, 80)) == {"a"}


@kp(
    "KP-133",
    "The external policy is edited live: source addresses and the health check port follow, both ways",
)
def test_kp_133_the_policy_is_edited(fleet: Fleet) -> None:
    address, port = fleet.external_ip(), fleet.node_port()
    own, daemon = {fleet.client.address4}, fleet.daemons[0]
    for policy in ("Local", "Cluster", "Local"):
        fields = {"externalTrafficPolicy": policy, "healthCheckNodePort": port}
        fleet.put(balanced(fleet, "lb", address, 0, **fields))
        seen = sources(answers(fleet.client, address, 80, 2))
        assert seen == own if policy == "Local" else seen <= fleet.own4()
        expected = http.client.OK if policy == "Local" else 0
        answered = partial(_answers, daemon, port, expected)
        until(answered, 10, f"{policy}: the health check answers {expected}")


def _answers(daemon: Daemon, port: int, status: int) -> bool:
    return daemon.get("/", port)[0] == status


@kp(
    "KP-135",
    "A host answers no ARP for an external address it does not own",
    differs="answers, unless strictARP is set",
)
def test_kp_135_no_arp(fleet: Fleet) -> None:
    address = fleet.external_ip()
    fleet.put(service("web", {"externalIPs": [address], "ports": PORTS}, {"a": endpoint(fleet.backends[0])}))
    answers(fleet.client, address, 80, 1)
    fleet.client.ip(f"route add {address}/32 dev eth0")
    try:
        assert isinstance(ask_tcp(fleet.client, address, 80, timeout=0.5), Failure)
        neighbours = fleet.client.run(["ip", "neighbour", "show", address]).stdout
        assert "lladdr" not in neighbours
        assert address in neighbours
    finally:
        fleet.client.ip(f"route delete {address}/32 dev eth0")


@kp(
    "KP-137",
    "Load balancer addresses of both families in one service: each is served by endpoints of its family",
)
def test_kp_137_addresses_of_both_families(fleet: Fleet) -> None:
    four, six = fleet.external_ip(), fleet.external_ip(0, 6)
    a, b, _ = fleet.backends
    spec = {"type": "LoadBalancer", "loadBalancerIPs": [four, six], "ports": PORTS}
    fleet.put(service("lb", spec, {"a4": endpoint(a, 4), "b6": endpoint(b, 6)}))
    for machine in (fleet.client, fleet.hosts[0]):
        assert names(answers(machine, four, 80, 2)) == {"a"}
        assert names(answers(machine, six, 80, 2)) == {"b"}
    assert isinstance(ask_udp(fleet.client, six, 53), Answer)
