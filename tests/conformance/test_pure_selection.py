"""Which endpoints serve, judged from records to virtual servers: KP-040 to KP-063."""

from __future__ import annotations

import pytest

from tests.conformance.behaviour import kp
from tests.conformance.paper import FRONT, INSIDE, WEB, PaperHost, at, cluster_ip, sockets

NODE_PORT = {"ports": [{"port": 80, "nodePort": 36200}]}
EXTERNAL = "203.0.113.1"


@pytest.fixture
def host() -> PaperHost:
    """`host0` in zone `east`."""
    return PaperHost()


def zones(*names: str) -> dict[str, object]:
    return {"forZones": list(names)}


def nodes(*names: str) -> dict[str, object]:
    return {"forNodes": list(names)}


def draining(number: int, **fields: object) -> dict[str, object]:
    return at(number, ready=False, serving=True, terminating=True, **fields)


@kp("KP-040", "Three ready endpoints, both policies Cluster, no hints: all of them for every kind of address")
def test_kp_040_all_ready_endpoints(host: PaperHost) -> None:
    host.serve(cluster_ip(**NODE_PORT, externalIPs=[EXTERNAL]), at(1, nodeName="host0"), at(2), at(3))
    assert host.servers() == {f"tcp/{WEB}:80", f"tcp/{EXTERNAL}:80", f"tcp/{FRONT}:36200"}
    for address, port in ((WEB, 80), (EXTERNAL, 80), (FRONT, 36200)):
        assert host.backends(address, port) == sockets(1, 2, 3)


@kp("KP-041", "Every ready endpoint has zone hints and one names our zone: only those that name it")
def test_kp_041_zone_hints(host: PaperHost) -> None:
    host.serve(
        cluster_ip(), at(1, hints=zones("east")), at(2, hints=zones("west")), at(3, hints=zones("east"))
    )
    assert host.backends(WEB) == sockets(1, 3)


@kp("KP-042", "One ready endpoint without zone hints switches them off altogether")
def test_kp_042_one_endpoint_without_hint(host: PaperHost) -> None:
    host.serve(cluster_ip(), at(1, hints=zones("east")), at(2, hints=zones("west")), at(3))
    assert host.backends(WEB) == sockets(1, 2, 3)


@kp("KP-043", "Hints of which none names our zone are ignored")
def test_kp_043_no_hint_for_our_zone(host: PaperHost) -> None:
    host.serve(cluster_ip(), at(1, hints=zones("north")), at(2, hints=zones("west")))
    assert host.backends(WEB) == sockets(1, 2)


@kp("KP-044", "A host that knows no zone of its own ignores zone hints")
@pytest.mark.parametrize("zone", ["", "  "])
def test_kp_044_our_zone_is_unknown(zone: str) -> None:
    host = PaperHost(zone=zone)
    host.serve(cluster_ip(), at(1, hints=zones("east")), at(2, hints=zones("west")))
    assert host.backends(WEB) == sockets(1, 2)


@kp("KP-045", "An unready endpoint without hints does not switch the others' hints off")
def test_kp_045_an_unready_endpoint_without_hint(host: PaperHost) -> None:
    host.serve(cluster_ip(), at(1, hints=zones("east")), at(2, hints=zones("west")), at(3, ready=False))
    assert host.backends(WEB) == sockets(1)


@kp("KP-046", "An endpoint that names two zones, one of them ours, is used")
def test_kp_046_an_endpoint_for_two_zones(host: PaperHost) -> None:
    host.serve(cluster_ip(), at(1, hints=zones("west", "east")), at(2, hints=zones("west")))
    assert host.backends(WEB) == sockets(1)


@kp("KP-047", "Every ready endpoint has node hints and one names us: only those, even where zone hints match")
def test_kp_047_node_hints_before_zone_hints(host: PaperHost) -> None:
    host.serve(
        cluster_ip(),
        at(1, hints=nodes("host0") | zones("east")),
        at(2, hints=nodes("host1") | zones("east")),
    )
    assert host.backends(WEB) == sockets(1)


@kp("KP-048", "Node hints that do not name us leave the decision to the zone hints")
@pytest.mark.parametrize("others", [nodes("host2"), {}])
def test_kp_048_zone_hints_where_node_hints_fail(host: PaperHost, others: dict[str, object]) -> None:
    host.serve(cluster_ip(), at(1, hints=nodes("host1") | zones("east")), at(2, hints=others | zones("west")))
    assert host.backends(WEB) == sockets(1)


@kp("KP-050", "Under externalTrafficPolicy Local the local endpoints count whatever their hints say")
def test_kp_050_local_list_ignores_hints(host: PaperHost) -> None:
    spec = cluster_ip(**NODE_PORT, externalTrafficPolicy="Local")
    far = at(1, nodeName="host0", hints=zones("west"))
    host.serve(spec, far, at(2, nodeName="host1", hints=zones("east")))
    assert host.backends(FRONT, 36200) == sockets(1)


@kp(
    "KP-051",
    "externalTrafficPolicy Local with hints: external clients get the local list without them, all others the"
    " cluster list with them",
    differs="one list for all clients of an address: the short cut of workloads and host processes is missing",
)
def test_kp_051_hinted_cluster_list_beside_unhinted_local_list(host: PaperHost) -> None:
    spec = cluster_ip(**NODE_PORT, externalTrafficPolicy="Local", externalIPs=[EXTERNAL])
    host.serve(
        spec,
        at(1, nodeName="host0", hints=zones("west")),
        at(2, nodeName="host0", hints=zones("east")),
        at(3, nodeName="host1", hints=zones("east")),
    )
    assert host.backends(EXTERNAL) == host.backends(FRONT, 36200) == sockets(1, 2)
    assert host.backends(WEB) == host.backends(INSIDE, 36200) == sockets(2, 3)
    [detour] = [s for s in host.servers() if s.startswith("tcp/169.254.96.") and s.endswith(":80")]
    assert host.backends(detour.removeprefix("tcp/").removesuffix(":80")) == sockets(2, 3)


@kp(
    "KP-053", "externalTrafficPolicy Local on a service without node port or external address changes nothing"
)
def test_kp_053_external_policy_of_an_internal_service(host: PaperHost) -> None:
    host.serve(cluster_ip(externalTrafficPolicy="Local"), at(1, nodeName="host1"), at(2, nodeName="host0"))
    assert host.servers() == {f"tcp/{WEB}:80"}
    assert host.backends(WEB) == sockets(1, 2)
    assert host.verdicts() == {f"{WEB}:80": "cluster_ip4"}


@kp("KP-054", "When all endpoints terminate but still serve, all of them are used")
def test_kp_054_all_terminating(host: PaperHost) -> None:
    host.serve(cluster_ip(**NODE_PORT), draining(1), draining(2))
    assert host.backends(WEB) == host.backends(FRONT, 36200) == sockets(1, 2)


@kp("KP-055", "One ready endpoint: those that terminate get no new connections")
def test_kp_055_one_ready_and_one_terminating(host: PaperHost) -> None:
    host.serve(cluster_ip(), draining(1), at(2))
    assert host.backends(WEB) == sockets(2)


@kp("KP-057", "Endpoints that terminate and do not serve are never used")
def test_kp_057_terminating_and_not_serving(host: PaperHost) -> None:
    gone = at(1, ready=False, serving=False, terminating=True)
    host.serve(cluster_ip(**NODE_PORT), gone)
    assert host.backends(WEB) == host.backends(FRONT, 36200) == []


@kp("KP-058", "Endpoints that are not ready but serve, without terminating, are never used")
def test_kp_058_unready_but_serving(host: PaperHost) -> None:
    host.serve(cluster_ip(**NODE_PORT), at(1, ready=False, serving=True))
    assert host.backends(WEB) == host.backends(FRONT, 36200) == []


@kp(
    "KP-131",
    "Under externalTrafficPolicy Local an external address has the local endpoints only, source addresses kept",
)
@pytest.mark.parametrize("field", ["externalIPs", "loadBalancerIPs"])
def test_kp_131_local_endpoints_at_an_external_address(host: PaperHost, field: str) -> None:
    spec = cluster_ip(**{field: [EXTERNAL]}, externalTrafficPolicy="Local")
    host.serve(spec, at(1, nodeName="host0"), at(2, nodeName="host1"))
    assert host.backends(EXTERNAL) == sockets(1)
    assert host.verdicts()[f"{EXTERNAL}:80"] == "external_local4"


@kp(
    "KP-132",
    "Under Local without a local endpoint external clients get none: their packets are dropped",
    differs="gives them the endpoints of other hosts without masquerading: replies come from a stranger",
)
def test_kp_132_no_local_endpoint(host: PaperHost) -> None:
    spec = cluster_ip(**NODE_PORT, externalIPs=[EXTERNAL], externalTrafficPolicy="Local")
    host.serve(spec, at(2, nodeName="host1"))
    assert host.backends(EXTERNAL) == host.backends(FRONT, 36200) == []
    assert host.verdicts()[f"{EXTERNAL}:80"] == "external_silent4"
    assert host.backends(WEB) == host.backends(INSIDE, 36200) == sockets(2)
