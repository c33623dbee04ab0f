"""Cluster IPs with packets: KP-070 to KP-089."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conformance.behaviour import kp
from tests.conformance.fleet import REFUSALS, Ask, Fleet, Records, answers, endpoint, names, service, sources
from tests.lab.echo import Answer, Failure, ask_tcp, ask_udp
from tests.lab.namespace import Host

DOCKER = """
table ip docker {
  chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local tcp dport 80 dnat to 10.1.3.2:8080; }
  chain output { type nat hook output priority -100; fib daddr type local tcp dport 80 dnat to 10.1.3.2:8080; }
  chain postrouting { type nat hook postrouting priority srcnat; ip daddr 10.1.3.2 tcp dport 8080 masquerade; }
}
"""


@contextmanager
def nft_table(host: Host, name: str, script: str) -> Iterator[None]:
    """Another program's table, removed at the end."""
    host.run(["nft", "-f", "-"], stdin=script)
    try:
        yield
    finally:
        host.run(["nft", "delete", "table", "ip", name])


def both(fleet: Fleet, family: int = 4) -> dict[str, dict[str, object]]:
    """Endpoints a on host0 and b on host1."""
    return {backend.name: endpoint(backend, family) for backend in fleet.backends[:2]}


@kp("KP-070", "A workload that calls a cluster IP reaches every endpoint and keeps its source address")
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("ask", "protocol", "target"), [(ask_tcp, "TCP", 80), (ask_udp, "UDP", 53)])
def test_kp_070_workload(fleet: Fleet, family: int, ask: Ask, protocol: str, target: int) -> None:
    vip, workload = fleet.cluster_ip(family), fleet.backends[2]
    ports = [{"port": 8000, "protocol": protocol, "targetPort": target}]
    fleet.put(service("web", {"clusterIP": vip, "ports": ports}, both(fleet, family)))
    found = answers(workload, vip, 8000, ask=ask)
    assert names(found) == {"a", "b"}
    assert sources(found) == {workload.address4 if family == 4 else workload.address6}


@kp(
    "KP-071",
    "A host process that calls a cluster IP gets its answers; the endpoint sees an address of the host",
    differs="the kernel picks the cluster IP as source, which must be masqueraded",
)
@pytest.mark.parametrize("family", [4, 6])
def test_kp_071_host_process(fleet: Fleet, family: int) -> None:
    vip, host = fleet.cluster_ip(family), fleet.hosts[0]
    ports = [{"port": 8000, "targetPort": 80}]
    fleet.put(service("web", {"clusterIP": vip, "ports": ports}, both(fleet, family)))
    found = answers(host, vip, 8000)
    assert names(found) == {"a", "b"}
    assert sources(found) <= (fleet.own4() if family == 4 else fleet.own6())


@kp(
    "KP-072",
    "An endpoint that calls its own service and gets itself is masqueraded, at every kind of address",
)
@pytest.mark.parametrize("family", [4, 6])
def test_kp_072_hairpin(fleet: Fleet, family: int) -> None:
    vip, external, node_port = fleet.cluster_ip(family), fleet.external_ip(0, family), fleet.node_port()
    itself, host = fleet.backends[2], fleet.hosts[0]
    spec = {
        "clusterIP": vip,
        "externalIPs": [external],
        "externalTrafficPolicy": "Local",
        "ports": [{"port": 8000, "targetPort": 80, "nodePort": node_port}],
    }
    fleet.put(service("web", spec, {"c": endpoint(itself, family)}))
    own = host.address4 if family == 4 else host.address6
    for address, port in ((vip, 8000), (external, 8000), (own, node_port)):
        found = answers(itself, address, port, 2)
        assert names(found) == {"c"}
        assert sources(found) <= (fleet.own4() if family == 4 else fleet.own6()), address


@kp("KP-073", "With masquerade = all a workload that calls a cluster IP is masqueraded, too")
def test_kp_073_masquerade_all(fleet: Fleet) -> None:
    vip = fleet.cluster_ip()
    spec = {"clusterIP": vip, "ports": [{"port": 8000, "targetPort": 80}]}
    fleet.put(service("web", spec, both(fleet)))
    with fleet.configured(0, proxy={"masquerade": "all"}):
        found = answers(fleet.backends[2], vip, 8000)
    assert names(found) == {"a", "b"}
    assert sources(found) <= fleet.own4()


@kp("KP-074", "Without local_cidrs and with masquerade = none nobody who calls a cluster IP is masqueraded")
def test_kp_074_masquerade_none(fleet: Fleet) -> None:
    vip = fleet.cluster_ip()
    spec = {"clusterIP": vip, "ports": [{"port": 8000, "targetPort": 80}]}
    fleet.put(service("web", spec, {"a": endpoint(fleet.backends[0])}))
    with fleet.configured(0, proxy={"masquerade": "none", "local_cidrs": []}):
        for machine in (fleet.client, fleet.backends[2]):
            assert sources(answers(machine, vip, 8000, 2)) == {machine.address4}


@kp("KP-075", "A client outside local_cidrs that calls a cluster IP is masqueraded")
@pytest.mark.parametrize("family", [4, 6])
def test_kp_075_external_client(fleet: Fleet, family: int) -> None:
    vip = fleet.cluster_ip(family)
    spec = {"clusterIP": vip, "ports": [{"port": 8000, "targetPort": 80}]}
    fleet.put(service("web", spec, both(fleet, family)))
    found = answers(fleet.client, vip, 8000)
    assert names(found) == {"a", "b"}
    assert sources(found) <= (fleet.own4() if family == 4 else fleet.own6())


@kp(
    "KP-076",
    "A UDP packet to the address and port of a TCP service is not balanced: it is refused",
)
def test_kp_076_another_protocol(fleet: Fleet) -> None:
    vip = fleet.cluster_ip()
    spec = {"clusterIP": vip, "ports": [{"port": 53, "targetPort": 53}]}
    fleet.put(service("web", spec, both(fleet)))
    for machine in (fleet.client, fleet.hosts[0], fleet.backends[2]):
        assert ask_udp(machine, vip, 53) is Failure.REFUSED


@kp(
    "KP-078",
    "An address of the service CIDR that no service has is silent, whoever calls it",
    differs="the packet is routed away",
)
def test_kp_078_unallocated_address(fleet: Fleet) -> None:
    vip = fleet.cluster_ip()
    with fleet.servers_on(fleet.client, tcp=[80]) as [listener]:
        fleet.client.ip(f"addr add {vip}/32 dev lo")  # the default route of the hosts leads there
        for machine in (fleet.hosts[0], fleet.backends[2]):
            assert ask_tcp(machine, vip, 80, timeout=0.5) is Failure.TIMED_OUT
        fleet.client.ip(f"addr del {vip}/32 dev lo")
        assert ask_tcp(fleet.client, vip, 80, timeout=0.5) is Failure.TIMED_OUT
        assert listener.connections == 0


@kp("KP-079", "A service without endpoints refuses at once, at every kind of address")
def test_kp_079_no_endpoints(fleet: Fleet) -> None:
    vip, external, balanced, node_port = (
        fleet.cluster_ip(),
        fleet.external_ip(),
        fleet.external_ip(),
        fleet.node_port(),
    )
    spec = {
        "clusterIP": vip,
        "externalIPs": [external],
        "loadBalancerIPs": [balanced],
        "ports": [
            {"name": "tcp", "port": 80, "nodePort": node_port},
            {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": node_port},
        ],
    }
    fleet.put(service("web", spec))
    targets = [(vip, 80, 53), (external, 80, 53), (balanced, 80, 53)]
    targets.append((fleet.hosts[0].address4, node_port, node_port))
    for machine, (address, tcp, udp) in itertools.product(
        (fleet.client, fleet.hosts[0], fleet.backends[2]), targets
    ):
        assert ask_tcp(machine, address, tcp) is Failure.REFUSED, (machine, address)
        assert ask_udp(machine, address, udp) in REFUSALS, (machine, address)


@kp("KP-080", "Endpoints come and go and ports change: what is served follows at once")
def test_kp_080_the_served_set_follows(fleet: Fleet) -> None:
    vip, (a, b, _) = fleet.cluster_ip(), fleet.backends
    spec = {"clusterIP": vip, "ports": [{"port": 8000, "targetPort": 80}]}
    steps: list[tuple[Records, set[str]]] = [
        (service("web", spec, {"a": endpoint(a)}), {"a"}),
        (service("web", spec, {"a": endpoint(a), "b": endpoint(b)}), {"a", "b"}),
        ({"/services/web/endpoints/a": None}, {"b"}),
    ]
    for records, expected in steps:
        fleet.put(records)
        assert names(answers(fleet.client, vip, 8000)) == expected
    fleet.put({"/services/web": {"clusterIP": vip, "ports": [{"port": 8001, "targetPort": 8080}]}})
    [answer] = answers(fleet.client, vip, 8001, 1)
    assert (answer.backend, answer.local_port) == ("b", 8080)
    assert ask_tcp(fleet.client, vip, 8000) is Failure.REFUSED


@kp("KP-081", "A deleted service stops and the others go on; made again, it works again")
def test_kp_081_a_service_goes_and_comes_back(fleet: Fleet) -> None:
    one, other = fleet.cluster_ip(), fleet.cluster_ip()
    ports = [{"port": 80}]
    first = service("one", {"clusterIP": one, "ports": ports}, both(fleet))
    fleet.put(first | service("other", {"clusterIP": other, "ports": ports}, both(fleet)))
    answers(fleet.client, one, 80, 2)
    fleet.put(dict.fromkeys(first))
    assert isinstance(ask_tcp(fleet.client, one, 80, timeout=0.5), Failure)
    answers(fleet.client, other, 80, 2)
    fleet.put(first)
    assert names(answers(fleet.client, one, 80)) == {"a", "b"}


@kp("KP-083", "A service that turns ExternalName is served no more, and again when it turns back")
def test_kp_083_external_name_and_back(fleet: Fleet) -> None:
    vip, node_port = fleet.cluster_ip(), fleet.node_port()
    spec = {"clusterIP": vip, "ports": [{"port": 80, "nodePort": node_port}]}
    for kind, served in (("ExternalName", False), ("NodePort", True), ("ExternalName", False)):
        fleet.put(service("web", {**spec, "type": kind, "externalName": "db.example.org"}, both(fleet)))
        found = ask_tcp(fleet.client, vip, 80, timeout=3.0 if served else 0.5)
        assert isinstance(found, Answer if served else Failure)
        found = ask_tcp(fleet.client, fleet.hosts[0].address4, node_port)
        assert isinstance(found, Answer) if served else found is Failure.REFUSED


@kp("KP-084", "When the last endpoint is deleted, connections are refused at once")
def test_kp_084_the_last_endpoint_goes(fleet: Fleet) -> None:
    vip = fleet.cluster_ip()
    spec = {"clusterIP": vip, "ports": [{"port": 80}]}
    fleet.put(service("web", spec, {"a": endpoint(fleet.backends[0])}))
    answers(fleet.client, vip, 80, 1)
    fleet.put({"/services/web/endpoints/a": None})
    for machine in (fleet.client, fleet.hosts[0], fleet.backends[2]):
        assert ask_tcp(machine, vip, 80) is Failure.REFUSED


@kp(
    "KP-086",
    "A host process that binds no source address calls a cluster IP with the host's own address",
    differs="the source is the cluster IP itself, as that is bound to a device of the host",
)
@pytest.mark.parametrize("family", [4, 6])
def test_kp_086_source_address_of_the_host(fleet: Fleet, family: int) -> None:
    vip, host, (_, far, _) = fleet.cluster_ip(family), fleet.hosts[0], fleet.backends
    spec = {"clusterIP": vip, "ports": [{"port": 8000, "targetPort": 80}]}
    fleet.put(service("web", spec, {"b": endpoint(far, family)}))
    own = host.address4 if family == 4 else host.address6
    assert f"src {own}" in host.run(["ip", "route", "get", vip]).stdout
    assert sources(answers(host, vip, 8000, 2)) == {own}


@kp("KP-088", "Two services on one address and port number with different protocols: each answers its own")
def test_kp_088_one_port_number_two_protocols(fleet: Fleet) -> None:
    external, node_port = fleet.external_ip(), fleet.node_port()
    a, b, _ = fleet.backends
    tcp = {"port": 53, "targetPort": 80, "nodePort": node_port}
    udp = {"port": 53, "targetPort": 53, "protocol": "UDP", "nodePort": node_port}
    fleet.put(
        service("tcp", {"externalIPs": [external], "ports": [tcp]}, {"a": endpoint(a)})
        | service("udp", {"externalIPs": [external], "ports": [udp]}, {"b": endpoint(b)})
    )
    for address, port in ((external, 53), (fleet.hosts[0].address4, node_port)):
        assert names(answers(fleet.client, address, port, 2)) == {"a"}
        assert names(answers(fleet.client, address, port, 2, ask_udp)) == {"b"}


@kp(
    "KP-089",
    "A container published on port 80 of the host gets nothing of what is sent to port 80 of a service address",
)
def test_kp_089_a_published_container(fleet: Fleet) -> None:
    vip, external, host = fleet.cluster_ip(), fleet.external_ip(), fleet.hosts[0]
    spec = {"clusterIP": vip, "externalIPs": [external], "ports": [{"port": 80}]}
    fleet.put(service("web", spec, {"a": endpoint(fleet.backends[0])}))
    with nft_table(host, "docker", DOCKER):
        for machine in (fleet.client, host):
            assert names(answers(machine, vip, 80, 2)) == {"a"}
            assert names(answers(machine, external, 80, 2)) == {"a"}
            assert names(answers(machine, host.address4, 80, 2)) == {"c"}
