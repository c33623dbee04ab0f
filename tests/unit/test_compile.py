"""What one service becomes: every frontend, its traffic class, its backends, its elements, its findings.

The tables follow kube-proxy's specification; KP numbers are those of its behaviours.
"""

from __future__ import annotations

import msgspec
import pytest

from edgeproxy.address import Address, is_ipv4, parse, parse_network, text
from edgeproxy.books import HealthCheck, Part
from edgeproxy.catalog import EndpointEntry, ServiceEntry
from edgeproxy.claims import Claim, LostClaim, NodePortClaim
from edgeproxy.compile import Host, compile_service, detoured
from edgeproxy.kernel.nft_sets import COMMENT_LIMIT
from edgeproxy.model import Frontend, Protocol, Reason, SetName
from edgeproxy.records import Endpoint, Service, ServicePort, ServiceType, TrafficPolicy
from edgeproxy.refusals import Refusals
from edgeproxy.selection import Node
from edgeproxy.settings import Masquerade, PortRange, Proxy

TCP, UDP = Protocol.TCP, Protocol.UDP
LOCAL, CLUSTER = TrafficPolicy.LOCAL, TrafficPolicy.CLUSTER
VIP, VIP6 = parse("10.96.0.10"), parse("fd00:96::10")
EXTERNAL, BALANCER = parse("192.0.2.1"), parse("198.51.100.1")
FRONT, INSIDE, DETOUR = "169.254.96.1", "169.254.96.2", "169.254.96.9"
PORT = ServicePort(port=80, target_port=8080)
NODE_PORT = ServicePort(port=80, target_port=8080, node_port=36200)
HOST_ADDRESS = parse("10.1.0.11")
HOST = Host(
    node=Node("host0", "here", frozenset({HOST_ADDRESS})),
    proxy=Proxy(service_cidrs=(parse_network("10.96.0.0/16"), parse_network("fd00:96::/112"))),
    detours={a: parse(DETOUR) for a in (EXTERNAL, BALANCER)},
)
HERE, THERE, ELSEWHERE = "10.1.1.2", "10.1.2.2", "10.1.3.2"


def endpoint(address: str, **fields: object) -> EndpointEntry:
    key = f"/services/web/endpoints/{address}"
    return EndpointEntry(key, 5, 6, Endpoint(parse(address), **fields))  # type: ignore[arg-type]


def here(address: str = HERE, **fields: object) -> EndpointEntry:
    return endpoint(address, node_name="host0", **fields)


def there(address: str = THERE, **fields: object) -> EndpointEntry:
    return endpoint(address, node_name="host1", **fields)


def gone(entry: EndpointEntry) -> EndpointEntry:
    """Terminating, and serving no more."""
    fields = {"ready": False, "serving": False, "terminating": True}
    return msgspec.structs.replace(entry, endpoint=msgspec.structs.replace(entry.endpoint, **fields))


def compiled(
    *endpoints: EndpointEntry,
    host: Host = HOST,
    lost: tuple[Claim, ...] = (),
    name: str = "web",
    **fields: object,
) -> Part:
    service = Service(**{"ports": (PORT,), **fields})  # type: ignore[arg-type]
    entry = ServiceEntry(name, f"/services/{name}", 3, 4, service, endpoints)
    return compile_service(
        entry, [LostClaim("ports[0].port", claim, "/services/first") for claim in lost], host
    )


def with_proxy(**fields: object) -> Host:
    return msgspec.structs.replace(HOST, proxy=msgspec.structs.replace(HOST.proxy, **fields))


def servers(part: Part) -> dict[str, list[str]]:
    """Backends by frontend, in words."""
    return {
        f"{text(t.server.frontend.address)} {t.server.frontend.port}": [
            text(real.address) for real in t.reals
        ]
        for t in part.targets
    }


def verdicts(part: Part) -> dict[str, str]:
    """Chain by service address or node port."""
    return {
        str(e.key[1]) if isinstance(e.key[0], Protocol) else text(e.key[0]): e.verdict  # type: ignore[arg-type]
        for e in part.elements
        if e.verdict
    }


def keys(part: Part, *names: SetName) -> list[tuple[object, ...]]:
    return [e.key for e in part.elements if e.set in names]


def findings(part: Part) -> list[tuple[str, str, Reason]]:
    return [(f.key, f.path, f.reason) for f in part.findings]


class TestClusterIp:
    @pytest.mark.parametrize(
        ("policy", "endpoints", "chain", "backends"),
        [
            (CLUSTER, [here(), there()], "cluster_ip4", [HERE, THERE]),
            (CLUSTER, [], "cluster_ip4", []),
            (CLUSTER, [gone(here())], "cluster_ip4", []),
            (LOCAL, [here(), there()], "cluster_ip4", [HERE]),
            (LOCAL, [there()], "cluster_ip_silent4", []),
            (LOCAL, [], "cluster_ip4", []),
            (LOCAL, [gone(there())], "cluster_ip4", []),
        ],
    )
    def test_follows_the_internal_policy(
        self, policy: TrafficPolicy, endpoints: list[EndpointEntry], chain: str, backends: list[str]
    ) -> None:
        part = compiled(*endpoints, cluster_ips=(VIP,), internal_policy=policy, external_policy=LOCAL)
        assert verdicts(part) == {"10.96.0.10": chain}
        assert servers(part) == {"10.96.0.10 80": backends}
        assert part.findings == ()

    def test_its_address_is_ours_and_its_route_that_of_the_cidr(self) -> None:
        part = compiled(cluster_ips=(VIP,))
        assert keys(part, SetName.FRONTENDS4) == [(VIP, TCP, 80)]
        assert keys(part, SetName.ADDRESSES4) == [(VIP,)]
        assert keys(part, SetName.UNANSWERED) == []
        assert part.routes == ()
        assert part.health_check is None

    def test_outside_every_service_cidr_it_has_a_route_of_its_own_and_a_warning(self) -> None:
        address = parse("172.30.0.1")
        part = compiled(cluster_ips=(address,))
        assert part.routes == (address,)
        assert findings(part) == [("/services/web", "clusterIP", Reason.OUTSIDE_SERVICE_CIDRS)]
        assert keys(part, SetName.UNANSWERED) == [(address,)]

    def test_two_ports_warn_once(self) -> None:
        ports = (
            ServicePort(port=80, target_port=80, name="a"),
            ServicePort(port=81, target_port=81, name="b"),
        )
        assert len(compiled(cluster_ips=(parse("172.30.0.1"),), ports=ports).findings) == 1

    def test_each_family_has_its_own(self) -> None:
        part = compiled(here(), here("fd00:1::2"), cluster_ips=(VIP, VIP6))
        assert servers(part) == {"10.96.0.10 80": [HERE], "fd00:96::10 80": ["fd00:1::2"]}
        assert verdicts(part) == {"10.96.0.10": "cluster_ip4", "fd00:96::10": "cluster_ip6"}
        assert keys(part, SetName.ADDRESSES6) == [(VIP6,)]
        assert keys(part, SetName.HAIRPIN6) == [(parse("fd00:1::2"),) * 2]


class TestExternal:
    @pytest.mark.parametrize("ranged", [False, True])
    @pytest.mark.parametrize(
        ("policy", "endpoints", "chain", "backends", "detour"),
        [
            (CLUSTER, [here(), there()], "cluster", [HERE, THERE], None),
            (CLUSTER, [], "cluster", [], None),
            (LOCAL, [here(), there()], "local", [HERE], [HERE, THERE]),
            (LOCAL, [there()], "silent", [], [THERE]),
            (LOCAL, [], "local", [], []),
            (LOCAL, [gone(there())], "local", [], []),
        ],
    )
    def test_follows_the_external_policy(
        self,
        policy: TrafficPolicy,
        endpoints: list[EndpointEntry],
        chain: str,
        backends: list[str],
        detour: list[str] | None,
        ranged: bool,
    ) -> None:
        part = compiled(
            *endpoints,
            load_balancer_ips=(BALANCER,),
            source_ranges=(parse_network("203.0.113.0/24"),) if ranged else (),
            external_policy=policy,
            internal_policy=LOCAL,
        )
        assert verdicts(part) == {"198.51.100.1": f"{'ranged' if ranged else 'external'}_{chain}4"}
        expected = {"198.51.100.1 80": backends}
        if detour is not None:
            expected[f"{DETOUR} 80"] = detour
        assert servers(part) == expected
        detours = [(e.key, text(e.data), e.comment) for e in part.elements if e.set is SetName.DETOURS4]
        assert detours == ([((BALANCER, TCP, 80), DETOUR, "web")] if detour is not None else [])
        assert part.routes == (BALANCER,)

    def test_ranges_are_for_load_balancer_addresses_only(self) -> None:
        ranges = (parse_network("203.0.113.0/24"), parse_network("2001:db8::/32"))
        part = compiled(external_ips=(EXTERNAL,), load_balancer_ips=(BALANCER,), source_ranges=ranges)
        assert verdicts(part) == {"192.0.2.1": "external_cluster4", "198.51.100.1": "ranged_cluster4"}
        (element,) = [e for e in part.elements if e.set is SetName.SOURCES4]
        assert element.key == (BALANCER, TCP, 80, parse("203.0.113.0"))
        assert element.until == (BALANCER, TCP, 80, parse("203.0.113.255"))

    def test_ranges_of_the_other_family_close_this_one(self) -> None:
        part = compiled(load_balancer_ips=(BALANCER,), source_ranges=(parse_network("2001:db8::/32"),))
        assert verdicts(part) == {"198.51.100.1": "ranged_cluster4"}
        assert keys(part, SetName.SOURCES4, SetName.SOURCES6) == []

    def test_ranges_inside_others_are_left_out(self) -> None:
        ranges = ("10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16", "10.255.255.255/32", "11.0.0.0/8", "0.0.0.0/32")
        part = compiled(load_balancer_ips=(BALANCER,), source_ranges=tuple(map(parse_network, ranges)))
        assert [key[3] for key in keys(part, SetName.SOURCES4)] == list(
            map(parse, ("10.0.0.0", "11.0.0.0", "0.0.0.0"))
        )

    def test_an_address_of_the_host_needs_no_route_and_is_not_guarded(self) -> None:
        part = compiled(here(), external_ips=(HOST_ADDRESS,))
        assert part.routes == ()
        assert keys(part, SetName.ADDRESSES4, SetName.UNANSWERED) == []
        assert verdicts(part) == {"10.1.0.11": "external_cluster4"}

    @pytest.mark.parametrize("answer", [False, True])
    def test_arp_is_answered_where_configured(self, answer: bool) -> None:
        part = compiled(external_ips=(EXTERNAL,), host=with_proxy(answer_arp=answer))
        assert keys(part, SetName.UNANSWERED) == ([] if answer else [(EXTERNAL,)])

    @pytest.mark.parametrize(
        ("refused", "host", "endpoints"),
        [
            (
                "etcd",
                msgspec.structs.replace(HOST, refusals=Refusals(addresses={EXTERNAL: "an etcd endpoint"})),
                [],
            ),
            ("cidrs", with_proxy(external_cidrs=(parse_network("198.51.100.0/24"),)), []),
            ("endpoint", HOST, [there("192.0.2.1"), here()]),
        ],
    )
    def test_guard_rails(self, refused: str, host: Host, endpoints: list[EndpointEntry]) -> None:
        part = compiled(*endpoints, external_ips=(EXTERNAL,), load_balancer_ips=(BALANCER,), host=host)
        assert findings(part) == [("/services/web", "externalIPs", Reason.REFUSED)]
        assert set(verdicts(part)) == {"198.51.100.1"}

    def test_a_refused_load_balancer_address_is_named_as_such(self) -> None:
        host = with_proxy(external_cidrs=())
        assert findings(compiled(load_balancer_ips=(BALANCER,), host=host)) == [
            ("/services/web", "loadBalancerIPs", Reason.REFUSED)
        ]

    def test_detoured(self) -> None:
        service = Service(external_ips=(EXTERNAL,), load_balancer_ips=(BALANCER,), external_policy=LOCAL)
        assert detoured(service) == (EXTERNAL, BALANCER)
        assert detoured(msgspec.structs.replace(service, external_policy=CLUSTER)) == ()

    def test_without_an_anchor_it_is_served_and_said(self) -> None:
        host = msgspec.structs.replace(HOST, detours={})
        part = compiled(here(), external_ips=(EXTERNAL,), external_policy=LOCAL, host=host)
        assert servers(part) == {"192.0.2.1 80": [HERE]}
        assert findings(part) == [("/services/web", "externalTrafficPolicy", Reason.CONFIGURATION)]


class TestNodePort:
    @pytest.mark.parametrize(
        ("policy", "endpoints", "chain", "front", "inside"),
        [
            (CLUSTER, [here(), there()], "node_port_cluster4", [HERE, THERE], None),
            (CLUSTER, [], "node_port_cluster4", [], None),
            (LOCAL, [here(), there()], "node_port_local4", [HERE], [HERE, THERE]),
            (LOCAL, [there()], "node_port_silent4", [], [THERE]),
            (LOCAL, [], "node_port_local4", [], []),
        ],
    )
    def test_follows_the_external_policy(
        self,
        policy: TrafficPolicy,
        endpoints: list[EndpointEntry],
        chain: str,
        front: list[str],
        inside: list[str] | None,
    ) -> None:
        part = compiled(*endpoints, ports=(NODE_PORT,), cluster_ips=(VIP,), external_policy=policy)
        expected = {f"{FRONT} 36200": front}
        if inside is not None:
            expected[f"{INSIDE} 36200"] = inside
        found = servers(part)
        del found["10.96.0.10 80"]
        assert found == expected
        assert verdicts(part) == {"10.96.0.10": "cluster_ip4", "36200": chain}
        assert keys(part, SetName.NODE_PORTS4) == [(TCP, 36200)]
        assert keys(part, SetName.NODE_PORTS6) == []

    @pytest.mark.parametrize(
        ("addresses", "endpoints", "families"),
        [
            ((VIP,), [here("fd00:1::2")], {True}),
            ((VIP, VIP6), [here()], {True, False}),
            ((), [here()], {True}),
            ((), [here(), here("fd00:1::2")], {True, False}),
            ((), [], {True, False}),
        ],
    )
    def test_families(
        self, addresses: tuple[Address, ...], endpoints: list[EndpointEntry], families: set[bool]
    ) -> None:
        part = compiled(*endpoints, ports=(NODE_PORT,), cluster_ips=addresses)
        anchors = {t.server.frontend.address for t in part.targets} - {VIP, VIP6}
        assert {is_ipv4(anchor) for anchor in anchors} == families

    @pytest.mark.parametrize(
        "host",
        [
            msgspec.structs.replace(HOST, refusals=Refusals(node_ports={36200: "etcd"})),
            with_proxy(node_port_range=PortRange(30000, 32767)),
        ],
    )
    def test_guard_rails(self, host: Host) -> None:
        other = ServicePort(port=81, target_port=81, name="other", node_port=30001)
        part = compiled(here(), ports=(NODE_PORT, other), cluster_ips=(VIP,), host=host)
        assert findings(part) == [("/services/web", "ports[0].nodePort", Reason.REFUSED)]
        assert set(servers(part)) == {"10.96.0.10 80", "10.96.0.10 81", f"{FRONT} 30001"}

    def test_two_families_find_one_fault_once(self) -> None:
        part = compiled(ports=(NODE_PORT,), host=with_proxy(node_port_range=PortRange(30000, 32767)))
        assert len(part.findings) == 1
        assert part.targets == ()


class TestClaims:
    def test_what_is_lost_is_left_out_and_the_rest_served(self) -> None:
        lost = (Frontend(VIP, TCP, 80), NodePortClaim(TCP, 36200), NodePortClaim(TCP, 36999))
        udp = ServicePort(port=80, target_port=80, name="udp", protocol=UDP, node_port=36200)
        part = compiled(
            here(),
            ports=(NODE_PORT, udp),
            cluster_ips=(VIP,),
            external_ips=(EXTERNAL,),
            type=ServiceType.LOAD_BALANCER,
            external_policy=LOCAL,
            health_check_node_port=36999,
            lost=lost,
        )
        mine = {(text(t.server.frontend.address), t.server.frontend.protocol) for t in part.targets}
        assert mine == {
            ("10.96.0.10", UDP),
            ("192.0.2.1", TCP),
            ("192.0.2.1", UDP),
            (DETOUR, TCP),
            (DETOUR, UDP),
            (FRONT, UDP),
            (INSIDE, UDP),
        }
        assert part.health_check is None

    def test_a_lost_external_address(self) -> None:
        part = compiled(external_ips=(EXTERNAL,), lost=(Frontend(EXTERNAL, TCP, 80),))
        assert part == Part()


class TestHairpin:
    @pytest.mark.parametrize(
        ("mode", "local_cidrs", "entry", "needed"),
        [
            (Masquerade.REMOTE, "", there(), False),
            (Masquerade.REMOTE, "", here(), True),
            (Masquerade.REMOTE, "10.1.2.0/24", there(), True),
            (Masquerade.ALL, "", there(), False),
            (Masquerade.ALL, "", here(), True),
            (Masquerade.NONE, "", there(), True),
            (Masquerade.NONE, "", here("10.1.0.11"), False),
        ],
    )
    def test_a_backend_that_may_call_itself_unmasqueraded(
        self, mode: Masquerade, local_cidrs: str, entry: EndpointEntry, needed: bool
    ) -> None:
        networks = (parse_network(local_cidrs),) if local_cidrs else ()
        part = compiled(entry, cluster_ips=(VIP,), host=with_proxy(masquerade=mode, local_cidrs=networks))
        assert keys(part, SetName.HAIRPIN4) == ([(entry.endpoint.address,) * 2] if needed else [])


class TestServers:
    def test_attributes(self) -> None:
        part = compiled(
            here(weight=7), cluster_ips=(VIP,), scheduler="mh", affinity_timeout=600, drain_seconds=5
        )
        (target,) = part.targets
        assert (target.server.scheduler, target.server.timeout, target.drain) == ("mh", 600, 5.0)
        assert target.server.flags == 0x10, "KP-145: mh hashes the source port, too"
        assert [(real.port, real.weight) for real in target.reals] == [(8080, 7)]

    def test_defaults_are_those_of_the_configuration(self) -> None:
        (target,) = compiled(cluster_ips=(VIP,), host=with_proxy(scheduler="lc", drain=7.0)).targets
        assert (target.server.scheduler, target.server.flags, target.drain) == ("lc", 0, 7.0)
        assert compiled(cluster_ips=(VIP,), drain_seconds=0).targets[0].drain == 0.0

    @pytest.mark.parametrize(
        ("scheduler", "weights", "told"),
        [("rr", (1, 2), True), ("rr", (2, 2), False), ("rr", (0, 2), False), ("wrr", (1, 2), False)],
    )
    def test_weights_that_nobody_looks_at(self, scheduler: str, weights: tuple[int, int], told: bool) -> None:
        endpoints = [here(weight=weights[0]), there(weight=weights[1])]
        part = compiled(*endpoints, cluster_ips=(VIP,), scheduler=scheduler)
        expected = [("/services/web", "scheduler", Reason.WEIGHTS_IGNORED)] if told else []
        assert findings(part) == expected

    @pytest.mark.parametrize("address", ["10.96.3.4", "169.254.96.7"])
    def test_an_endpoint_inside_our_own_networks_is_refused(self, address: str) -> None:
        part = compiled(here(), endpoint(address), cluster_ips=(VIP,))
        assert servers(part) == {"10.96.0.10 80": [HERE]}
        assert findings(part) == [(f"/services/web/endpoints/{address}", "address", Reason.REFUSED)]

    def test_an_endpoint_without_a_port(self) -> None:
        port = ServicePort(port=80, target_port="http", name="web")
        part = compiled(
            here(ports=(("other", 1),)), there(ports=(("http", 81),)), ports=(port,), cluster_ips=(VIP,)
        )
        assert servers(part) == {"10.96.0.10 80": [THERE]}
        assert findings(part) == [(f"/services/web/endpoints/{HERE}", "ports", Reason.UNRESOLVED_PORT)]
        assert part.findings[0].revision == 6


class TestWhole:
    def test_nothing_to_serve(self) -> None:
        assert compiled(here(), cluster_ips=(VIP,), type=ServiceType.EXTERNAL_NAME) == Part()
        assert compiled(here(), cluster_ips=(VIP,), ports=()) == Part()
        assert compiled(here()) == Part()

    def test_health_check_counts_ready_local_addresses(self) -> None:
        endpoints = [
            here(),
            here("10.1.1.3", port=1),
            EndpointEntry("/services/web/endpoints/copy", 9, 9, Endpoint(parse(HERE), 2, node_name="host0")),
            here("10.1.1.4", ready=False, terminating=True),
            there(),
        ]
        for policy, expected in ((LOCAL, HealthCheck(36999, 2)), (CLUSTER, None)):
            part = compiled(
                *endpoints,
                load_balancer_ips=(BALANCER,),
                type=ServiceType.LOAD_BALANCER,
                health_check_node_port=36999,
                external_policy=policy,
            )
            assert part.health_check == expected, "KP-225"

    def test_elements_of_one_service_carry_its_name_shortened(self) -> None:
        name = "é" * 60 + "x" * 20
        part = compiled(cluster_ips=(VIP,), ports=(NODE_PORT,), name=name)
        comments = {e.comment for e in part.elements if e.set is not SetName.ADDRESSES4}
        assert comments == {"é" * 60 + "x" * 8}
        assert len(comments.pop().encode()) == COMMENT_LIMIT
        assert [e.comment for e in part.elements if e.set is SetName.ADDRESSES4] == [""], "it may be shared"
