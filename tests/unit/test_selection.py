"""Which endpoints serve: KP-040 to KP-063 of kube-proxy's behaviours, and an independent reading."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeproxy.address import Address, is_ipv4, parse
from edgeproxy.records import Endpoint, Service, ServicePort, TrafficDistribution, TrafficPolicy
from edgeproxy.selection import (
    Backend,
    Node,
    Selection,
    is_local,
    ready_local_addresses,
    resolve_port,
    select,
    uses_cluster,
    uses_local,
)
from edgeproxy.versions import EndpointEntry

NODE = Node("here", "z1")
LOCAL = TrafficPolicy.LOCAL
PORT = ServicePort(port=80, target_port=80)
NODE_PORT = ServicePort(port=80, target_port=80, node_port=36200)


def at(number: int) -> Address:
    return parse(f"10.1.1.{number}")


def entry(number: int, created: int = 1, *, key: str = "", **fields: object) -> EndpointEntry:
    endpoint = Endpoint(at(number), **fields)  # type: ignore[arg-type]
    name = key or f"/services/web/endpoints/{number:03}"
    return EndpointEntry(name, created, created, endpoint)


def draining(number: int, **fields: object) -> EndpointEntry:
    return entry(number, ready=False, serving=True, terminating=True, **fields)  # type: ignore[arg-type]


def run(
    *endpoints: EndpointEntry,
    port: ServicePort = PORT,
    node: Node = NODE,
    four: bool = True,
    **fields: object,
) -> Selection:
    service = Service(ports=(port,), **fields)  # type: ignore[arg-type]
    return select(service, port, endpoints, node, four=four)


def numbers(backends: tuple[Backend, ...]) -> list[int]:
    return [backend.address[-1] for backend in backends]


class TestCluster:
    def test_all_ready_ones_and_no_local_list(self) -> None:
        found = run(entry(3), entry(1), entry(2, node_name="here"))
        assert numbers(found.cluster) == [1, 2, 3]
        assert [backend.local for backend in found.cluster] == [False, True, False]
        assert (found.local, found.has_any) == ((), True)

    def test_nothing_at_all(self) -> None:
        assert run() == Selection()

    @pytest.mark.parametrize(
        ("endpoints", "expected"),
        [
            ([draining(1), draining(2)], [1, 2]),
            ([draining(1), entry(2)], [2]),
            ([entry(1, ready=False, serving=False, terminating=True)], []),
            ([entry(1, ready=False, serving=True)], []),
            ([entry(1, ready=True, terminating=True), entry(2)], [1, 2]),
        ],
    )
    def test_those_that_terminate_serve_when_none_is_ready(
        self, endpoints: list[EndpointEntry], expected: list[int]
    ) -> None:
        found = run(*endpoints)
        assert numbers(found.cluster) == expected
        assert found.has_any == bool(expected)

    def test_not_ready_addresses_can_be_published(self) -> None:
        endpoints = (entry(1, ready=False, serving=False), draining(2))
        assert numbers(run(*endpoints, publish_not_ready=True).cluster) == [1, 2]


class TestHints:
    @pytest.mark.parametrize(
        ("hints", "expected"),
        [
            ([("z1",), ("z2",)], [1]),
            ([("z1",), ()], [1, 2]),
            ([("z2",), ("z3",)], [1, 2]),
            ([("z1", "z2"), ("z2",)], [1]),
        ],
    )
    def test_zones(self, hints: list[tuple[str, ...]], expected: list[int]) -> None:
        found = run(*(entry(number, zone_hints=hint) for number, hint in enumerate(hints, 1)))
        assert numbers(found.cluster) == expected

    def test_a_node_without_a_zone_ignores_them(self) -> None:
        assert numbers(
            run(entry(1, zone_hints=("z1",)), entry(2, zone_hints=("",)), node=Node("here")).cluster
        ) == [1, 2]

    def test_endpoints_that_are_not_ready_need_none(self) -> None:
        found = run(
            entry(1, zone_hints=("z1",)), entry(2, zone_hints=("z2",)), entry(3, ready=False), draining(4)
        )
        assert numbers(found.cluster) == [1]

    def test_nodes_come_first(self) -> None:
        found = run(
            entry(1, zone_hints=("z1",), node_hints=("there",)),
            entry(2, zone_hints=("z2",), node_hints=("here", "there")),
        )
        assert numbers(found.cluster) == [2]

    def test_zones_count_where_no_node_matches(self) -> None:
        found = run(
            entry(1, zone_hints=("z1",), node_hints=("there",)),
            entry(2, zone_hints=("z2",), node_hints=("there",)),
        )
        assert numbers(found.cluster) == [1]

    def test_the_fall_back_ignores_them(self) -> None:
        assert numbers(run(draining(1, zone_hints=("z2",)), draining(2, zone_hints=("z1",))).cluster) == [
            1,
            2,
        ]

    def test_the_local_list_ignores_them(self) -> None:
        found = run(
            entry(1, zone_hints=("z1",)),
            entry(2, zone_hints=("z2",), node_name="here"),
            port=NODE_PORT,
            external_policy=LOCAL,
        )
        assert (numbers(found.cluster), numbers(found.local)) == ([1], [2])


class TestDistribution:
    def test_the_zone_of_the_endpoint_is_its_hint(self) -> None:
        endpoints = (entry(1, zone="z1"), entry(2, zone="z2"))
        assert numbers(run(*endpoints).cluster) == [1, 2]
        found = run(*endpoints, traffic_distribution=TrafficDistribution.SAME_ZONE)
        assert numbers(found.cluster) == [1]

    def test_an_endpoint_without_a_zone_switches_it_off(self) -> None:
        found = run(entry(1, zone="z1"), entry(2), traffic_distribution=TrafficDistribution.SAME_ZONE)
        assert numbers(found.cluster) == [1, 2]

    def test_the_same_node_then_the_same_zone_then_all(self) -> None:
        mode = TrafficDistribution.SAME_NODE
        here = entry(1, zone="z1", node_name="here")
        near = entry(2, zone="z1", node_name="there")
        far = entry(3, zone="z2", node_name="yonder")
        assert numbers(run(here, near, far, traffic_distribution=mode).cluster) == [1]
        assert numbers(run(near, far, traffic_distribution=mode).cluster) == [2]
        assert numbers(run(far, traffic_distribution=mode).cluster) == [3]

    def test_explicit_hints_beat_it(self) -> None:
        found = run(
            entry(1, zone="z1", zone_hints=("z2",)),
            entry(2, zone="z2", zone_hints=("z1",)),
            traffic_distribution=TrafficDistribution.SAME_ZONE,
        )
        assert numbers(found.cluster) == [2]

    def test_one_explicit_hint_is_enough_to_switch_it_off(self) -> None:
        found = run(
            entry(1, zone="z1", zone_hints=("z1",)),
            entry(2, zone="z2"),
            traffic_distribution=TrafficDistribution.SAME_ZONE,
        )
        assert numbers(found.cluster) == [1, 2]


class TestLocal:
    def test_only_remote_ones_are_told_from_none(self) -> None:
        found = run(entry(1), internal_policy=LOCAL)
        assert (found.cluster, found.local, found.has_any) == ((), (), True)
        found = run(entry(1, ready=False, serving=False), internal_policy=LOCAL)
        assert not found.has_any

    def test_each_list_falls_back_by_itself(self) -> None:
        found = run(draining(1, node_name="here"), entry(2), port=NODE_PORT, external_policy=LOCAL)
        assert (numbers(found.cluster), numbers(found.local)) == ([2], [1])

    @pytest.mark.parametrize(
        ("service", "port", "cluster", "local"),
        [
            (Service(), PORT, True, False),
            (Service(internal_policy=LOCAL), PORT, False, True),
            (Service(internal_policy=LOCAL), NODE_PORT, True, True),
            (Service(external_policy=LOCAL), PORT, True, False),
            (Service(external_policy=LOCAL), NODE_PORT, True, True),
            (Service(external_policy=LOCAL, external_ips=(at(9),)), PORT, True, True),
            (Service(external_policy=LOCAL, load_balancer_ips=(at(9),)), PORT, True, True),
            (Service(internal_policy=LOCAL, external_ips=(at(9),)), PORT, True, True),
        ],
    )
    def test_which_lists_a_port_uses(
        self, service: Service, port: ServicePort, cluster: bool, local: bool
    ) -> None:
        assert (uses_cluster(service, port), uses_local(service, port)) == (cluster, local)

    @pytest.mark.parametrize(
        ("endpoint", "node", "expected"),
        [
            (Endpoint(at(1), node_name="here"), Node(" Here\n"), True),
            (Endpoint(at(1), node_name="there"), Node("here", addresses=frozenset({at(1)})), False),
            (Endpoint(at(1)), Node("here", addresses=frozenset({at(1)})), True),
            (Endpoint(at(1)), Node("here"), False),
            (Endpoint(at(1)), Node(), False),
            (Endpoint(at(1), node_name="here"), Node(), False),
        ],
    )
    def test_where_an_endpoint_is(self, endpoint: Endpoint, node: Node, expected: bool) -> None:
        assert is_local(endpoint, node) == expected

    def test_health_checks_count_ready_local_addresses(self) -> None:
        endpoints = [
            entry(1, node_name="here", port=80),
            entry(1, node_name="here", port=81),
            entry(2, node_name="there"),
            draining(3, node_name="here"),
            entry(4, node_name="here", ready=False),
            entry(5, node_name="here", terminating=True),
        ]
        assert ready_local_addresses(Service(), endpoints, NODE) == 1
        assert ready_local_addresses(Service(publish_not_ready=True), endpoints, NODE) == 2


class TestPorts:
    @pytest.mark.parametrize(
        ("endpoint", "port", "several", "expected"),
        [
            ({}, {"target_port": 8080}, False, 8080),
            ({}, {"target_port": 80}, False, 80),
            ({}, {"target_port": "http"}, False, 80),
            ({"port": 9}, {"target_port": 8080}, False, 9),
            ({"port": 9}, {"target_port": 8080, "name": "web"}, True, None),
            ({"ports": (("http", 7), ("web", 8))}, {"target_port": "http", "name": "web"}, True, 7),
            ({"ports": (("web", 8),)}, {"target_port": "http", "name": "web"}, True, 8),
            ({"ports": (("web", 8),)}, {"target_port": 8080, "name": "web"}, True, 8),
            ({"ports": (("other", 8),), "port": 9}, {"target_port": "http"}, False, 9),
            ({"ports": (("other", 8),), "port": 9}, {"target_port": "http", "name": "web"}, True, None),
            ({"ports": (("renamed", 8),)}, {"target_port": 8080, "name": "web"}, False, None),
            ({"ports": (("renamed", 8),)}, {"target_port": "http"}, False, None),
            ({"ports": (("http", 8),)}, {"target_port": 8080}, False, 8080),
            ({"ports": (("", 8),)}, {"target_port": 8080}, False, 8),
        ],
    )
    def test_which_port_serves(
        self, endpoint: dict[str, object], port: dict[str, object], several: bool, expected: int | None
    ) -> None:
        wanted = ServicePort(port=80, **port)  # type: ignore[arg-type]
        others = (ServicePort(port=81, target_port=81, name="other"),) if several else ()
        service = Service(ports=(wanted, *others))
        assert resolve_port(Endpoint(at(1), **endpoint), service, wanted) == expected  # type: ignore[arg-type]

    def test_an_endpoint_without_a_port_is_left_out_and_named(self) -> None:
        odd = entry(1, ports=(("renamed", 8),))
        found = run(odd, entry(2), port=ServicePort(port=80, target_port="http"))
        assert (numbers(found.cluster), found.unresolved) == ([2], (odd,))


class TestMerging:
    def test_the_same_address_and_port_is_one_backend(self) -> None:
        found = run(
            entry(1, 7, key="b", weight=5, node_name="here"),
            entry(1, 3, key="a", weight=2, port=80),
            entry(1, port=81),
        )
        assert found.cluster == (Backend(at(1), 80, 2, local=True), Backend(at(1), 81, 1))

    def test_it_serves_if_any_of_its_records_does(self) -> None:
        found = run(entry(1, 1, key="a", ready=False, weight=3), entry(1, 2, key="b", weight=4))
        assert found.cluster == (Backend(at(1), 80, 3),)

    def test_families_are_apart(self) -> None:
        six = EndpointEntry("six", 1, 1, Endpoint(parse("fd00::1")))
        assert run(entry(1), six, four=False).cluster == (Backend(parse("fd00::1"), 80),)
        assert numbers(run(entry(1), six).cluster) == [1]


ZONES = st.sampled_from(["", "z1", "z2"])
NODES = st.sampled_from(["", "here", "there"])
ENDPOINTS = st.lists(
    st.builds(
        lambda address, ready, serving, terminating, node, zone, zones, nodes: Endpoint(
            address,
            node_name=node,
            zone=zone,
            ready=ready,
            serving=serving,
            terminating=terminating,
            zone_hints=tuple(sorted(zones)),
            node_hints=tuple(sorted(nodes)),
        ),
        st.sampled_from([at(1), at(2), at(3), at(4), parse("fd00::1")]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        NODES,
        ZONES,
        st.sets(st.sampled_from(["z1", "z2"])),
        st.sets(st.sampled_from(["here", "there"])),
    ),
    max_size=5,
    unique_by=lambda endpoint: endpoint.address,
)
POLICIES = st.sampled_from(TrafficPolicy)


@settings(max_examples=1000)
@given(
    ENDPOINTS,
    POLICIES,
    POLICIES,
    st.booleans(),
    st.booleans(),
    st.sampled_from(TrafficDistribution),
    NODES,
    ZONES,
)
def test_an_independent_reading_of_the_rules_agrees(
    endpoints: list[Endpoint],
    internal: TrafficPolicy,
    external: TrafficPolicy,
    exposed: bool,
    publish: bool,
    distribution: TrafficDistribution,
    node_name: str,
    zone: str,
) -> None:
    port = NODE_PORT if exposed else PORT
    service = Service(
        ports=(port,),
        internal_policy=internal,
        external_policy=external,
        publish_not_ready=publish,
        traffic_distribution=distribution,
    )
    entries = [EndpointEntry(str(i), i, i, endpoint) for i, endpoint in enumerate(endpoints, 1)]
    found = select(service, port, entries, Node(node_name, zone), four=True)
    cluster, local, has_any = naive(service, exposed, endpoints, node_name, zone)
    assert {backend.address for backend in found.cluster} == cluster
    assert {backend.address for backend in found.local} == local
    assert found.has_any == has_any
    assert list(found.cluster) == sorted(found.cluster)


def naive(
    service: Service, exposed: bool, endpoints: list[Endpoint], node_name: str, zone: str
) -> tuple[set[Address], set[Address], bool]:
    """Section "Algorithm (per ServicePort)" of the reference, line by line."""
    eps = [e for e in endpoints if is_ipv4(e.address)]
    ready = {e.address: e.ready or service.publish_not_ready for e in eps}
    leaving = {e.address: e.serving and e.terminating for e in eps}
    hints = {e.address: (set(e.zone_hints), set(e.node_hints)) for e in eps}
    explicit = any(hints[e.address] != (set(), set()) for e in eps if ready[e.address])
    if service.traffic_distribution.value and not explicit:
        for e in eps:
            by_node = service.traffic_distribution.value == "PreferSameNode"
            hints[e.address] = ({e.zone} - {""}, {e.node_name} - {""} if by_node else set())
    cluster: set[Address] = set()
    local: set[Address] = set()
    has_any = False
    if service.internal_policy.value != "Local" or exposed:
        pool = {a for a in ready if ready[a]}
        same_node = {a for a in pool if node_name and node_name in hints[a][1]}
        same_zone = {a for a in pool if zone and zone in hints[a][0]}
        if same_node and all(hints[a][1] for a in pool):
            cluster = same_node
        elif same_zone and all(hints[a][0] for a in pool):
            cluster = same_zone
        else:
            cluster = pool
        cluster = cluster or {a for a in leaving if leaving[a]}
        has_any = bool(cluster)
    if service.internal_policy.value == "Local" or (exposed and service.external_policy.value == "Local"):
        mine = {e.address for e in eps if node_name and e.node_name == node_name}
        local = {a for a in mine if ready[a]} or {a for a in mine if leaving[a]}
        has_any = any(ready[e.address] or leaving[e.address] for e in eps)
    return cluster, local, has_any
