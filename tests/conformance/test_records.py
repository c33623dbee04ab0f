"""Records and change tracking with packets: KP-001 to KP-036."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, answers, endpoint, names, service
from tests.lab.echo import Answer, Failure, ask_tcp, ask_udp
from tests.lab.wait import until

LATENCY = "edgeproxy_network_programming_seconds"
SOURCE_PORT = 40053
"""UDP clients that go on and on use one port: they are one flow for the kernel."""


@kp("KP-001", "A service with two TCP ports makes two units, each with its own endpoint port")
def test_kp_001_two_ports(fleet: Fleet) -> None:
    vip = fleet.cluster_ip()
    ports = [
        {"name": "web", "port": 8000, "targetPort": 80},
        {"name": "admin", "port": 9000, "targetPort": 8080},
    ]
    fleet.put(service("web", {"clusterIP": vip, "ports": ports}, {"a": endpoint(fleet.backends[0])}))
    for port, arrives in ((8000, 80), (9000, 8080)):
        [answer] = answers(fleet.client, vip, port, 1)
        assert answer.local_port == arrives


@kp("KP-002", "TCP 53 and UDP 53 of one service are two units, and both work")
def test_kp_002_one_number_two_protocols(fleet: Fleet) -> None:
    vip = fleet.cluster_ip()
    ports = [
        {"name": "tcp", "port": 53, "targetPort": 80},
        {"name": "udp", "port": 53, "targetPort": 5353, "protocol": "UDP"},
    ]
    fleet.put(service("dns", {"clusterIP": vip, "ports": ports}, {"a": endpoint(fleet.backends[0])}))
    assert answers(fleet.client, vip, 53, 1)[0].local_port == 80
    assert answers(fleet.client, vip, 53, 1, ask_udp)[0].local_port == 5353


@kp(
    "KP-009",
    "A cluster IP service becomes a LoadBalancer under Local with a health check port, and goes back",
)
def test_kp_009_load_balancer_and_back(fleet: Fleet) -> None:
    vip, address, port = fleet.cluster_ip(), fleet.external_ip(), fleet.node_port()
    internal = {"clusterIP": vip, "ports": [{"port": 80}]}
    balanced = {
        **internal,
        "type": "LoadBalancer",
        "loadBalancerIPs": [address],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": port,
    }
    near, far = fleet.daemons
    endpoints = {"a": endpoint(fleet.backends[0])}
    for _ in range(2):
        fleet.put(service("web", internal, endpoints))
        until(lambda: near.get("/", port)[0] == far.get("/", port)[0] == 0, 10, "nobody listens")
        fleet.put(service("web", balanced, endpoints))
        until(lambda: near.get("/", port)[0] == http.client.OK, 10, "the host with the endpoint says 200")
        until(lambda: far.get("/", port)[0] == http.client.SERVICE_UNAVAILABLE, 10, "the other one says 503")
        answers(fleet.client, address, 80, 1)


@kp("KP-011", "A service with cluster IPs of both families: each is served by endpoints of its family alone")
def test_kp_011_dual_stack(fleet: Fleet) -> None:
    four, six = fleet.cluster_ip(), fleet.cluster_ip(6)
    a, b, _ = fleet.backends
    spec = {"clusterIPs": [four, six], "ports": [{"port": 80}]}
    fleet.put(service("web", spec, {"a4": endpoint(a), "b6": endpoint(b, 6)}))
    for machine in (fleet.client, fleet.hosts[0], fleet.backends[2]):
        assert names(answers(machine, four, 80, 2)) == {"a"}
        assert names(answers(machine, six, 80, 2)) == {"b"}


@kp("KP-027", "An endpoint port is renamed and matches no more: the service port loses its backends")
def test_kp_027_a_port_is_renamed(fleet: Fleet) -> None:
    vip, backend = fleet.cluster_ip(), fleet.backends[0]
    spec = {"clusterIP": vip, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}
    for name, served in (("web", True), ("site", False), ("http", True)):
        fleet.put(service("web", spec, {"a": endpoint(backend, ports={name: 8080})}))
        if served:
            assert answers(fleet.client, vip, 80, 1)[0].local_port == 8080
        else:
            assert ask_tcp(fleet.client, vip, 80) is Failure.REFUSED


@kp("KP-028", "An endpoint port changes its number: new connections go to the new one at once")
def test_kp_028_a_port_is_renumbered(fleet: Fleet) -> None:
    vip, backend = fleet.cluster_ip(), fleet.backends[0]
    spec = {"clusterIP": vip, "ports": [{"name": "http", "port": 8000, "targetPort": "web"}]}
    for number in (80, 8080):
        fleet.put(service("web", spec, {"a": endpoint(backend, ports={"web": number})}))
        found = answers(fleet.client, vip, 8000, 3)
        assert {answer.local_port for answer in found} == {number}


def ask_again(fleet: Fleet, address: str, port: int) -> Answer | Failure:
    """One more datagram of the same flow."""
    return ask_udp(fleet.client, address, port, source_port=SOURCE_PORT, timeout=1.0)


def flow_moves(fleet: Fleet, change: Callable[[str], None], expected: tuple[str, int]) -> None:
    """UDP flows through every kind of address follow when `change` (given the service's name) is made.

    The flows begin while a, port 53, is the only endpoint.
    """
    vip, external, node_port = fleet.cluster_ip(), fleet.external_ip(), fleet.node_port()
    ports = [{"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP", "nodePort": node_port}]
    spec = {"clusterIP": vip, "externalIPs": [external], "ports": ports}
    fleet.put(service("dns", spec, {"a": endpoint(fleet.backends[0], ports={"dns": 53})}))
    ways = ((vip, 53), (external, 53), (fleet.hosts[0].address4, node_port))
    for address, port in ways:
        first = ask_again(fleet, address, port)
        assert isinstance(first, Answer)
        assert (first.backend, first.local_port) == ("a", 53)
    change("dns")
    for address, port in ways:
        then = ask_again(fleet, address, port)
        assert isinstance(then, Answer), f"{address}: {then}"
        assert (then.backend, then.local_port) == expected, address


@kp("KP-029", "A UDP endpoint is removed: flows that go on are tracked anew and reach another one")
def test_kp_029_a_udp_endpoint_is_removed(fleet: Fleet) -> None:
    other = endpoint(fleet.backends[1], ports={"dns": 53})

    def replace(name: str) -> None:
        fleet.put({f"/services/{name}/endpoints/b": other, f"/services/{name}/endpoints/a": None})

    flow_moves(fleet, replace, ("b", 53))


@kp("KP-029", "A UDP endpoint's port is renumbered: flows that go on follow")
def test_kp_029_a_udp_endpoint_is_renumbered(fleet: Fleet) -> None:
    changed = endpoint(fleet.backends[0], ports={"dns": 5353})
    flow_moves(fleet, lambda name: fleet.put({f"/services/{name}/endpoints/a": changed}), ("a", 5353))


@kp("KP-031", "A UDP endpoint terminates and serves no more: its flows go to another one")
def test_kp_031_a_udp_endpoint_terminates(fleet: Fleet) -> None:
    a, b, _ = fleet.backends
    gone = endpoint(a, ports={"dns": 53}, ready=False, serving=False, terminating=True)
    other = endpoint(b, ports={"dns": 53})

    def terminate(name: str) -> None:
        fleet.put({f"/services/{name}/endpoints/b": other, f"/services/{name}/endpoints/a": gone})

    flow_moves(fleet, terminate, ("b", 53))


def _samples(fleet: Fleet) -> float:
    return fleet.daemons[0].metric(f"{LATENCY}_count")


def _moment(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


@kp("KP-033", "A record changed before the daemon started makes no latency sample")
def test_kp_033_an_old_change(fleet: Fleet) -> None:
    before = _samples(fleet)
    spec = {"clusterIP": fleet.cluster_ip(), "ports": [{"port": 80}], "changedAt": _moment(-86400)}
    fleet.put(service("web", spec, {"a": endpoint(fleet.backends[0], changedAt=_moment(-86400))}))
    assert _samples(fleet) == before


@kp(
    "KP-034",
    "Two changes in one batch make two latency samples, each from its own time; a deletion makes none",
)
def test_kp_034_two_changes(fleet: Fleet) -> None:
    before, total = _samples(fleet), fleet.daemons[0].metric(f"{LATENCY}_sum")
    spec = {"clusterIP": fleet.cluster_ip(), "ports": [{"port": 80}], "changedAt": _moment(-2)}
    fleet.put(service("web", spec, {"a": endpoint(fleet.backends[0], changedAt=_moment(0))}))
    until(lambda: _samples(fleet) == before + 2, 10, "two more samples")
    assert fleet.daemons[0].metric(f"{LATENCY}_sum") > total + 2
    fleet.put({"/services/web/endpoints/a": None})
    assert _samples(fleet) == before + 2
