"""Node ports with packets: KP-100 to KP-117."""

from __future__ import annotations

import pytest

from tests.conformance.behaviour import kp
from tests.conformance.fleet import REFUSALS, Ask, Fleet, Records, answers, endpoint, names, service, sources
from tests.lab.echo import Answer, Failure, ask_sctp, ask_tcp, ask_udp


def node_port_service(
    fleet: Fleet, number: int, *backends: int, family: int = 4, **fields: object
) -> Records:
    """The records of a service with TCP node port `number`, and UDP the same, at backends by number."""
    chosen = {fleet.backends[n].name: endpoint(fleet.backends[n], family) for n in backends}
    ports = [
        {"name": "tcp", "port": 80, "nodePort": number},
        {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": number},
    ]
    return service(f"np{number}", {"clusterIP": fleet.cluster_ip(family), "ports": ports, **fields}, chosen)


@kp(
    "KP-100",
    "An external client reaches an endpoint elsewhere through any host's node port; it sees the host's address",
)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("ask", [ask_tcp, ask_udp])
def test_kp_100_endpoint_on_another_host(fleet: Fleet, family: int, ask: Ask) -> None:
    port, host = fleet.node_port(), fleet.hosts[0]
    fleet.put(node_port_service(fleet, port, 1, family=family))
    found = answers(fleet.client, host.address4 if family == 4 else host.address6, port, 2, ask)
    assert names(found) == {"b"}
    assert sources(found) <= (fleet.own4() if family == 4 else fleet.own6())


@kp(
    "KP-101",
    "Node ports answer on every address of the host, and on none of loopback or of services",
    differs="needs a virtual server for each address of the host",
)
def test_kp_101_every_address_of_the_host(fleet: Fleet) -> None:
    port, host = fleet.node_port(), fleet.hosts[0]
    records = node_port_service(fleet, port, 0, externalIPs=[external := fleet.external_ip()])
    fleet.put(records)
    spec = records[f"/services/np{port}"]
    assert isinstance(spec, dict)
    for address in sorted(fleet.own4()):
        assert isinstance(ask_tcp(host, address, port), Answer), address
    for address in ("10.1.0.11", "10.1.1.11", "10.1.2.11"):
        assert isinstance(ask_tcp(fleet.client, address, port), Answer), address
    for machine in (fleet.client, host):
        for address in (spec["clusterIP"], external):
            assert ask_tcp(machine, address, port) is Failure.REFUSED, address
    servers = host.run(["ipvsadm", "-Ln"]).stdout
    assert servers.count(f":{port}") == 2, "one for TCP and one for UDP, whatever the number of addresses"


@kp("KP-102", "With CIDRs in node_port_addresses only the host's addresses inside them answer")
def test_kp_102_addresses_in_a_cidr(fleet: Fleet) -> None:
    port = fleet.node_port()
    fleet.put(node_port_service(fleet, port, 0))
    with fleet.configured(0, proxy={"node_port_addresses": ["10.1.1.0/24"]}):
        for machine in (fleet.client, fleet.hosts[0]):
            assert isinstance(ask_tcp(machine, "10.1.1.11", port), Answer)
            assert ask_tcp(machine, "10.1.0.11", port) is Failure.REFUSED


@kp("KP-103", "With node_port_addresses = primary only the host's primary address answers, in both families")
def test_kp_103_primary_address(fleet: Fleet) -> None:
    four, six, host = fleet.node_port(), fleet.node_port(), fleet.hosts[0]
    fleet.put(node_port_service(fleet, four, 0) | node_port_service(fleet, six, 0, family=6))
    with fleet.configured(0, proxy={"node_port_addresses": ["primary"]}):
        for port, primary, other in (
            (four, host.address4, "10.1.1.11"),
            (six, host.address6, "fd00:1:1::11"),
        ):
            for machine in (fleet.client, host):
                assert isinstance(ask_tcp(machine, primary, port), Answer)
                assert ask_tcp(machine, other, port) is Failure.REFUSED


@kp("KP-104", "The node port of a service without endpoints refuses")
def test_kp_104_no_endpoints(fleet: Fleet) -> None:
    port = fleet.node_port()
    fleet.put(node_port_service(fleet, port))
    for machine in (fleet.client, fleet.hosts[0], fleet.backends[2]):
        for ask in (ask_tcp, ask_udp):
            assert ask(machine, fleet.hosts[0].address4, port) in REFUSALS


@kp("KP-105", "An SCTP node port answers on all addresses of the host")
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_kp_105_sctp(fleet: Fleet, policy: str) -> None:
    port = fleet.node_port()
    ports = [{"port": 3868, "protocol": "SCTP", "nodePort": port}]
    spec = {"clusterIP": fleet.cluster_ip(), "ports": ports, "externalTrafficPolicy": policy}
    fleet.put(service("diameter", spec, {"a": endpoint(fleet.backends[0])}))
    for address in ("10.1.0.11", "10.1.1.11"):
        found = answers(fleet.client, address, port, 1, ask_sctp)
        assert (sources(found) == {fleet.client.address4}) is (policy == "Local")


@kp(
    "KP-107",
    "Under externalTrafficPolicy Local an external client reaches local endpoints with its own address",
)
@pytest.mark.parametrize("family", [4, 6])
def test_kp_107_source_address_is_kept(fleet: Fleet, family: int) -> None:
    port = fleet.node_port()
    fleet.put(node_port_service(fleet, port, 0, 1, family=family, externalTrafficPolicy="Local"))
    own = fleet.client.address4 if family == 4 else fleet.client.address6
    for host, local in zip(fleet.hosts, "ab", strict=True):
        found = answers(fleet.client, host.address4 if family == 4 else host.address6, port)
        assert (names(found), sources(found)) == ({local}, {own})


@kp(
    "KP-108",
    "Under Local, with endpoints on other hosts only, external clients get silence; those of this host are served",
    differs="forwards to the other hosts unmasqueraded: the replies come from a stranger, the client times out",
)
def test_kp_108_silence_without_a_local_endpoint(fleet: Fleet) -> None:
    port, host, workload = fleet.node_port(), fleet.hosts[0], fleet.backends[2]
    fleet.put(node_port_service(fleet, port, 1, externalTrafficPolicy="Local"))
    heard = fleet.requests("b")
    for ask in (ask_tcp, ask_udp):
        assert ask(fleet.client, host.address4, port, timeout=0.5) is Failure.TIMED_OUT
    assert fleet.requests("b") == heard
    for machine in (host, workload):
        for ask in (ask_tcp, ask_udp):
            assert names(answers(machine, host.address4, port, 1, ask)) == {"b"}


@kp("KP-111", "Under Local and without local_cidrs a workload counts as external: local endpoints only")
def test_kp_111_a_workload_nobody_knows(fleet: Fleet) -> None:
    port, workload = fleet.node_port(), fleet.backends[2]
    fleet.put(node_port_service(fleet, port, 0, 1, externalTrafficPolicy="Local"))
    address = fleet.hosts[0].address4
    assert names(answers(workload, address, port)) == {"a", "b"}
    with fleet.configured(0, proxy={"local_cidrs": []}):
        found = answers(workload, address, port)
        assert (names(found), sources(found)) == ({"a"}, {workload.address4})


@kp("KP-112", "A service that gives up its node port: it is released and refuses; the cluster IP works on")
def test_kp_112_the_node_port_is_given_up(fleet: Fleet) -> None:
    port, vip, host = fleet.node_port(), fleet.cluster_ip(), fleet.hosts[0]
    endpoints = {"a": endpoint(fleet.backends[0])}
    spec = {"clusterIP": vip, "type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}
    fleet.put(service("web", spec, endpoints))
    answers(fleet.client, host.address4, port, 1)
    fleet.put(service("web", {"clusterIP": vip, "ports": [{"port": 80}]}))
    for machine in (fleet.client, host):
        assert ask_tcp(machine, host.address4, port) is Failure.REFUSED
    answers(fleet.client, vip, 80, 1)
    fleet.put(service("other", {**spec, "clusterIP": fleet.cluster_ip()}, endpoints))
    answers(fleet.client, host.address4, port, 1)


@kp("KP-115", "Node ports do not answer on 127.0.0.1 and ::1: they refuse")
def test_kp_115_loopback(fleet: Fleet) -> None:
    port, host = fleet.node_port(), fleet.hosts[0]
    fleet.put(node_port_service(fleet, port, 0))
    for address in ("127.0.0.1", "::1"):
        assert ask_tcp(host, address, port) is Failure.REFUSED
    assert isinstance(ask_tcp(host, host.address4, port), Answer)


@kp(
    "KP-116",
    "An address that comes up late answers node ports at once",
    differs="at the next forced sync",
)
def test_kp_116_an_address_that_comes_late(fleet: Fleet) -> None:
    port, host = fleet.node_port(), fleet.hosts[0]
    fleet.put(node_port_service(fleet, port, 0))
    fleet.client.ip("route add 192.0.2.9/32 via 10.1.0.11")
    host.ip("link add late type dummy", "link set late up", "addr add 192.0.2.9/32 dev late")
    try:
        for machine in (fleet.client, host):
            assert isinstance(ask_tcp(machine, "192.0.2.9", port), Answer)
    finally:
        host.ip("link delete late")
        fleet.client.ip("route delete 192.0.2.9/32")


@kp("KP-117", "Node-port traffic under Local is not masqueraded, whatever its protocol; under Cluster it is")
@pytest.mark.parametrize("policy", ["Local", "Cluster"])
def test_kp_117_masquerade_by_policy(fleet: Fleet, policy: str) -> None:
    port, host = fleet.node_port(), fleet.hosts[0]
    fleet.put(node_port_service(fleet, port, 0, externalTrafficPolicy=policy))
    for ask in (ask_tcp, ask_udp):
        seen = sources(answers(fleet.client, host.address4, port, 2, ask))
        assert seen == {fleet.client.address4} if policy == "Local" else seen <= fleet.own4()
