"""Endpoints that terminate, with packets: KP-200 to KP-204."""

from __future__ import annotations

from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, answers, endpoint, names, service
from tests.lab.echo import Failure, ask_tcp

TERMINATING = {"ready": False, "serving": True, "terminating": True}
ENDED = {"ready": False, "serving": False, "terminating": True}


@kp(
    "KP-200",
    "Ready endpoints only, under the Cluster policies; when none is left, those that terminate but serve",
)
def test_kp_200_cluster(fleet: Fleet) -> None:
    address, port = fleet.cluster_ip(), fleet.node_port()
    a, b, c = fleet.backends
    spec = {"clusterIP": address, "ports": [{"port": 80, "nodePort": port}], "scheduler": "rr"}
    endpoints = {"a": endpoint(a), "b": endpoint(b, **TERMINATING), "c": endpoint(c, **TERMINATING)}
    fleet.put(service("web", spec, endpoints))
    frontends = ((address, 80), (fleet.hosts[0].address4, port))
    for where in frontends:
        assert names(answers(fleet.client, *where)) == {"a"}
    fleet.put({"/services/web/endpoints/a": endpoint(a, **ENDED)})
    for where in frontends:
        assert names(answers(fleet.client, *where)) == {"b", "c"}
    fleet.put({"/services/web/endpoints/a": endpoint(a)})
    for where in frontends:
        assert names(answers(fleet.client, *where)) == {"a"}


@kp("KP-201", "The same under the Local policies, judged by the endpoints of the host alone")
def test_kp_201_local(fleet: Fleet) -> None:
    address, port, host = fleet.cluster_ip(), fleet.node_port(), fleet.hosts[0]
    a, b, c = fleet.backends
    spec = {
        "clusterIP": address,
        "ports": [{"port": 80, "nodePort": port}],
        "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Local",
    }
    endpoints = {"a": endpoint(a, **TERMINATING), "b": endpoint(b), "c": endpoint(c, **ENDED)}
    fleet.put(service("web", spec, endpoints))
    for where in ((address, 80), (host.address4, port)):
        assert names(answers(fleet.client, *where)) == {"a"}
    assert names(answers(host, address, 80)) == {"a"}
    assert names(answers(host, host.address4, port)) == {"b"}, "a host process gets the Cluster list"
    fleet.put({"/services/web/endpoints/c": endpoint(c)})
    for where in ((address, 80), (host.address4, port)):
        assert names(answers(fleet.client, *where)) == {"c"}


@kp("KP-202", "Endpoints that terminate and do not serve are never used: refused")
def test_kp_202_not_serving(fleet: Fleet) -> None:
    address, port, host = fleet.cluster_ip(), fleet.node_port(), fleet.hosts[0]
    spec = {"clusterIP": address, "ports": [{"port": 80, "nodePort": port}]}
    fleet.put(service("web", spec, {b.name: endpoint(b, **ENDED) for b in fleet.backends}))
    for machine in (fleet.client, host):
        for where in ((address, 80), (host.address4, port)):
            assert ask_tcp(machine, *where) is Failure.REFUSED


@kp(
    "KP-204",
    "Under externalTrafficPolicy Local, with the endpoint elsewhere, the node port is silent for external clients "
    "and works for workloads and processes of the host",
    differs="workloads and processes of the host get nothing either",
)
def test_kp_204_the_endpoint_is_elsewhere(fleet: Fleet) -> None:
    port, host = fleet.node_port(), fleet.hosts[0]
    spec = {
        "clusterIP": fleet.cluster_ip(),
        "ports": [{"port": 80, "nodePort": port}],
        "externalTrafficPolicy": "Local",
    }
    fleet.put(service("web", spec, {"b": endpoint(fleet.backends[1])}))
    assert ask_tcp(fleet.client, host.address4, port, timeout=1) is Failure.TIMED_OUT
    for machine in (fleet.backends[0], host):
        assert names(answers(machine, host.address4, port, 2)) == {"b"}
    assert names(answers(fleet.client, fleet.hosts[1].address4, port, 2)) == {"b"}
