"""Policies and nearness with packets: KP-047 to KP-063."""

from __future__ import annotations

import pytest

from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, answers, endpoint, names, service
from tests.lab.echo import Failure, ask_tcp, ask_udp

TCP_AND_UDP = [{"name": "tcp", "port": 80}, {"name": "udp", "port": 53, "protocol": "UDP"}]


@kp(
    "KP-052",
    "internalTrafficPolicy Local without a local endpoint: silence at the cluster IP, whoever calls",
    differs="refuses, or, if the service has external addresses, too, sends to other hosts",
)
@pytest.mark.parametrize(
    "fields", [{}, {"externalIPs": ["203.0.113.253"]}], ids=["internal", "external, too"]
)
def test_kp_052_no_local_endpoint(fleet: Fleet, fields: dict[str, object]) -> None:
    vip, far = fleet.cluster_ip(), endpoint(fleet.backends[1])
    spec = {"clusterIP": vip, "ports": TCP_AND_UDP, "internalTrafficPolicy": "Local", **fields}
    fleet.put(service("web", spec, {"b": far}))
    heard = fleet.requests("b")
    for machine in (fleet.client, fleet.hosts[0], fleet.backends[2]):
        assert ask_tcp(machine, vip, 80, timeout=0.5) is Failure.TIMED_OUT
    assert ask_udp(fleet.client, vip, 53, timeout=0.5) is Failure.TIMED_OUT
    assert fleet.requests("b") == heard


@kp(
    "KP-060", "internalTrafficPolicy Cluster serves all endpoints at the cluster IP, Local those of this host"
)
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_kp_060_internal_policy(fleet: Fleet, policy: str) -> None:
    near, far = fleet.cluster_ip(), fleet.cluster_ip(number=1)
    for number, vip in enumerate((near, far)):
        spec = {"clusterIP": vip, "ports": TCP_AND_UDP, "internalTrafficPolicy": policy}
        both = {backend.name: endpoint(backend) for backend in fleet.backends[:2]}
        fleet.put(service(f"web{number}", spec, both))
    for machine, vip, local in (
        (fleet.client, near, "a"),
        (fleet.hosts[0], near, "a"),
        (fleet.backends[2], near, "a"),
        (fleet.client, far, "b"),
        (fleet.hosts[1], near, "b"),
    ):
        assert names(answers(machine, vip, 80)) == ({local} if policy == "Local" else {"a", "b"})


@kp(
    "KP-061",
    "With publishNotReadyAddresses endpoints that are not ready are reached; without, they are refused",
)
def test_kp_061_publish_not_ready_addresses(fleet: Fleet) -> None:
    vip = fleet.cluster_ip()
    unready = endpoint(fleet.backends[0], ready=False)
    for published in (False, True, False):
        spec = {"clusterIP": vip, "ports": TCP_AND_UDP, "publishNotReadyAddresses": published}
        fleet.put(service("web", spec, {"a": unready}))
        for machine in (fleet.client, fleet.hosts[0]):
            if published:
                assert names(answers(machine, vip, 80, 1)) == {"a"}
            else:
                assert ask_tcp(machine, vip, 80) is Failure.REFUSED


@kp(
    "KP-062",
    "trafficDistribution PreferSameZone and PreferClose keep clients in the zone of the host they come through",
    differs="the same, from hints that a controller writes; here they follow from `zone` of the endpoints",
)
@pytest.mark.parametrize("distribution", ["PreferSameZone", "PreferClose"])
def test_kp_062_same_zone(fleet: Fleet, distribution: str) -> None:
    near, far = fleet.cluster_ip(), fleet.cluster_ip(number=1)
    a, b, c = fleet.backends
    zoned = {"a": endpoint(a, zone="east"), "b": endpoint(b, zone="west"), "c": endpoint(c, zone="west")}
    for number, vip in enumerate((near, far)):
        spec = {"clusterIP": vip, "ports": TCP_AND_UDP, "trafficDistribution": distribution}
        fleet.put(service(f"web{number}", spec, zoned))
    assert names(answers(fleet.client, near, 80, 20)) == {"a"}
    assert names(answers(fleet.client, far, 80, 20)) == {"b", "c"}
    # Without an endpoint in the zone everybody serves.
    fleet.put({"/services/web0/endpoints/a": None})
    assert names(answers(fleet.client, near, 80)) == {"b", "c"}


@kp(
    "KP-063",
    "trafficDistribution PreferSameNode keeps clients on their host; when its endpoint goes, others take over",
    differs="the same, from hints that a controller writes; here they follow from `nodeName` of the endpoints",
)
def test_kp_063_same_node(fleet: Fleet) -> None:
    near, far = fleet.cluster_ip(), fleet.cluster_ip(number=1)
    both = {backend.name: endpoint(backend) for backend in fleet.backends[:2]}
    for number, vip in enumerate((near, far)):
        spec = {"clusterIP": vip, "ports": TCP_AND_UDP, "trafficDistribution": "PreferSameNode"}
        fleet.put(service(f"web{number}", spec, both))
    for machine, vip, expected in (
        (fleet.client, near, "a"),
        (fleet.hosts[0], near, "a"),
        (fleet.client, far, "b"),
    ):
        assert names(answers(machine, vip, 80)) == {expected}
    fleet.put({"/services/web0/endpoints/a": None})
    assert names(answers(fleet.client, near, 80)) == {"b"}


@kp(
    "KP-047",
    "Node hints, then zone hints, decide whom a client reaches: each host follows those that name it",
)
def test_kp_047_hints_with_packets(fleet: Fleet) -> None:
    near, far = fleet.cluster_ip(), fleet.cluster_ip(number=1)
    a, b, c = fleet.backends
    hinted = {
        "a": endpoint(a, hints={"forNodes": ["host0"], "forZones": [{"name": "west"}]}),
        "b": endpoint(b, hints={"forNodes": [{"name": "host2"}], "forZones": ["west"]}),
        "c": endpoint(c, hints={"forNodes": ["host2"], "forZones": ["east"]}),
    }
    for number, vip in enumerate((near, far)):
        fleet.put(service(f"web{number}", {"clusterIP": vip, "ports": TCP_AND_UDP}, hinted))
    assert names(answers(fleet.client, near, 80)) == {"a"}
    assert names(answers(fleet.client, far, 80)) == {"a", "b"}
