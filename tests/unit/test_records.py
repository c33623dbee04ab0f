"""Keys and values of records: what each field means, and every way to get it wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.address import parse, parse_network, special_kind
from edgeproxy.model import Protocol, Reason
from edgeproxy.record_endpoint import endpoint_from_value
from edgeproxy.record_keys import BadKey, EndpointKey, ReservedKey, ServiceKey, parse_key, service_key
from edgeproxy.record_service import service_from_json
from edgeproxy.record_values import special
from edgeproxy.records import (
    Endpoint,
    Service,
    ServicePort,
    ServiceType,
    Severity,
    TrafficDistribution,
    TrafficPolicy,
)
from tests.bad_records import BAD_ENDPOINTS, BAD_SERVICES, BadRecord

PREFIX = b"/services/"
_NAMES = """type clusterIP clusterIPs ports port name nodePort targetPort protocol externalIPs spec kind
address hints forZones weight ready sessionAffinityConfig clientIP timeoutSeconds"""
FIELDS = _NAMES.split()


def service(**fields: object) -> Service:
    parsed = service_from_json(json.dumps({"ports": [{"port": 80}], **fields}).encode())
    assert parsed.record is not None and not parsed.problems, parsed.problems
    return parsed.record


def endpoint(**fields: object) -> Endpoint:
    parsed = endpoint_from_value(json.dumps({"address": "10.1.1.2", **fields}).encode())
    assert parsed.record is not None and not parsed.problems, parsed.problems
    return parsed.record


def warnings(value: bytes | dict[str, object]) -> list[tuple[str, str]]:
    """The warnings of a usable record, service or endpoint."""
    if isinstance(value, dict):
        read = endpoint_from_value if "address" in value else service_from_json
        parsed = read(json.dumps(value).encode())
        assert parsed.record is not None
        assert all(problem.severity is Severity.WARNING for problem in parsed.problems)
        return [(problem.path, problem.message) for problem in parsed.problems]
    raise AssertionError(value)


class TestKeys:
    @pytest.mark.parametrize(
        "name", ["web", "web.shop", "a", "0", "a-b.c-1", "a" * 63, ".".join(["a" * 62] * 4)]
    )
    def test_service(self, name: str) -> None:
        assert parse_key(PREFIX, service_key(PREFIX, name)) == ServiceKey(name)

    @pytest.mark.parametrize("name", ["a", "10.1.1.2:80", "A_b-c.d", "x" * 253])
    def test_endpoint(self, name: str) -> None:
        assert parse_key(PREFIX, b"/services/web/endpoints/" + name.encode()) == EndpointKey("web", name)

    @pytest.mark.parametrize("name", [b"_meta/nodes/a", b"_meta/", b"_meta"])
    def test_reserved(self, name: bytes) -> None:
        assert parse_key(PREFIX, PREFIX + name) == ReservedKey()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (b"", "found none"),
            (b"Web", "did you mean 'web'?"),
            (b"w_b", "found 'w_b'"),
            (b"-a", "begins and ends"),
            (b"a-", "begins and ends"),
            (b"a..b", "labels joined by dots"),
            (b"web ", "found 'web '"),
            (b"web\n", "found 'web\\n'"),
            (b"a" * 64, "at most 63"),
            (b"a." * 126 + b"ab", "at most 253"),
            (b"w\xff", "ASCII"),
            (b"_meta2/a", "found '_meta2'"),
            (b"web/", "no slash at the end"),
            (b"web/endpoint/a", "expected web/endpoints/<endpoint>"),
            (b"web/endpoints", "after web/endpoints/"),
            (b"web/endpoints/", "after web/endpoints/"),
            (b"web/endpoints/a/b", "without a slash"),
            (b"web/endpoints/a b", "found 'a b'"),
            (b"web/endpoints/" + b"a" * 254, "at most 253"),
            (b"Web/endpoints/a", "did you mean 'web'?"),
        ],
    )
    def test_bad(self, name: bytes, message: str) -> None:
        found = parse_key(PREFIX, PREFIX + name)
        assert isinstance(found, BadKey)
        assert message in found.message

    def test_outside_the_prefix(self) -> None:
        assert isinstance(parse_key(PREFIX, b"/other/web"), BadKey)

    @given(st.binary(max_size=300))
    def test_any_key_gets_an_answer(self, name: bytes) -> None:
        parse_key(PREFIX, PREFIX + name)


class TestService:
    def test_the_walk_through(self) -> None:
        assert service(
            clusterIP="10.96.0.10", ports=[{"port": 8000, "targetPort": 80, "nodePort": 36200}]
        ) == Service(
            cluster_ips=(parse("10.96.0.10"),),
            ports=(ServicePort(port=8000, target_port=80, node_port=36200),),
        )

    def test_every_field(self) -> None:
        found = service(
            type="LoadBalancer",
            clusterIP="fd00:96::a",
            clusterIPs=["fd00:96::a", "10.96.0.10"],
            ports=[
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns-udp"},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "nodePort": 36053},
                {"name": "sig", "protocol": "SCTP", "port": 53, "nodePort": 36053, "appProtocol": "m3ua"},
            ],
            externalIPs=["192.0.2.2", "192.0.2.1", "2001:db8::1"],
            loadBalancerIPs=["203.0.113.1"],
            loadBalancerSourceRanges=[" 10.0.0.0/8 ", "2001:db8::/32"],
            externalTrafficPolicy="Local",
            internalTrafficPolicy="Local",
            sessionAffinity="ClientIP",
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
            healthCheckNodePort=36999,
            publishNotReadyAddresses=True,
            trafficDistribution="PreferSameNode",
            scheduler="mh",
            drainSeconds=0,
            changedAt="1970-01-01T01:00:01.5+01:00",
        )
        assert found == Service(
            ports=(
                ServicePort(port=53, target_port="dns-udp", name="dns", protocol=Protocol.UDP),
                ServicePort(port=53, target_port=53, name="dns-tcp", node_port=36053),
                ServicePort(port=53, target_port=53, name="sig", protocol=Protocol.SCTP, node_port=36053),
            ),
            cluster_ips=(parse("10.96.0.10"), parse("fd00:96::a")),
            external_ips=(parse("192.0.2.1"), parse("192.0.2.2"), parse("2001:db8::1")),
            load_balancer_ips=(parse("203.0.113.1"),),
            source_ranges=(parse_network("10.0.0.0/8"), parse_network("2001:db8::/32")),
            type=ServiceType.LOAD_BALANCER,
            external_policy=TrafficPolicy.LOCAL,
            internal_policy=TrafficPolicy.LOCAL,
            traffic_distribution=TrafficDistribution.SAME_NODE,
            affinity_timeout=60,
            health_check_node_port=36999,
            publish_not_ready=True,
            scheduler="mh",
            drain_seconds=0,
            changed_at=1.5,
        )

    @pytest.mark.parametrize(
        "fields",
        [{}, {"clusterIP": None}, {"clusterIP": ""}, {"clusterIP": "None"}, {"clusterIPs": ["None"]}],
    )
    def test_without_a_cluster_ip(self, fields: dict[str, object]) -> None:
        assert service(**fields).cluster_ips == ()

    def test_a_headless_service_needs_no_ports(self) -> None:
        assert not service(clusterIP="None", ports=None).serves

    def test_an_external_name_serves_nothing(self) -> None:
        assert service(type="ExternalName", externalName="a.example", ports=None).ports == ()
        assert not service(type="ExternalName", clusterIP="10.96.0.1").serves

    def test_null_is_absent(self) -> None:
        fields = (
            "type clusterIP clusterIPs externalIPs loadBalancerIPs loadBalancerSourceRanges"
            " externalTrafficPolicy internalTrafficPolicy sessionAffinity sessionAffinityConfig"
            " healthCheckNodePort publishNotReadyAddresses trafficDistribution scheduler drainSeconds"
            " changedAt selector"
        )
        port = dict.fromkeys(["name", "protocol", "targetPort", "nodePort", "appProtocol"])
        assert service(**dict.fromkeys(fields.split()), ports=[{**port, "port": 80}]) == service()
        assert service(externalIPs=[None]) == service()

    def test_fields_no_proxy_acts_on_are_ignored_silently(self) -> None:
        assert (
            service(
                selector={"app": "web"},
                ipFamilies=["IPv4"],
                ipFamilyPolicy="SingleStack",
                loadBalancerClass="x",
                loadBalancerIP="192.0.2.1",
                externalName="a",
                allocateLoadBalancerNodePorts=False,
            )
            == service()
        )

    def test_affinity_lasts_three_hours_by_default(self) -> None:
        assert service(sessionAffinity="ClientIP").affinity_timeout == 10800
        assert service(sessionAffinity="None").affinity_timeout == 0

    def test_prefer_close_is_an_old_name(self) -> None:
        assert service(trafficDistribution="PreferClose") == service(trafficDistribution="PreferSameZone")

    @pytest.mark.parametrize(
        ("fields", "port"),
        [
            ({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, 36999),
            ({"type": "LoadBalancer"}, 0),
            ({"type": "NodePort", "externalTrafficPolicy": "Local"}, 0),
        ],
    )
    def test_a_health_check_port_counts_for_load_balancers_under_local(
        self, fields: dict[str, object], port: int
    ) -> None:
        assert service(healthCheckNodePort=36999, **fields).health_check_port == port

    def test_the_order_of_addresses_does_not_matter(self) -> None:
        one, other = ["192.0.2.1", "192.0.2.2"], ["192.0.2.2", "192.0.2.1"]
        assert service(externalIPs=one, loadBalancerSourceRanges=one) == service(
            externalIPs=other, loadBalancerSourceRanges=other
        )


class TestEndpoint:
    @pytest.mark.parametrize(
        ("value", "address", "port"),
        [
            (b"10.1.1.2", "10.1.1.2", 0),
            (b"10.1.1.2:8080", "10.1.1.2", 8080),
            (b" 10.1.1.2:8080\n", "10.1.1.2", 8080),
            (b"fd00::2", "fd00::2", 0),
            (b"[fd00::2]", "fd00::2", 0),
            (b"\t[fd00::2]:65535 ", "fd00::2", 65535),
            (b' {"address": "10.1.1.2", "port": 1} ', "10.1.1.2", 1),
        ],
    )
    def test_forms(self, value: bytes, address: str, port: int) -> None:
        parsed = endpoint_from_value(value)
        assert parsed.record == Endpoint(parse(address), port)
        assert parsed.problems == ()

    def test_every_field(self) -> None:
        assert endpoint(
            address="fd00::2",
            port=80,
            ports={"web": 8080, "admin": 9090, "absent": None},
            nodeName=" Node-A ",
            zone=" z1 ",
            weight=0,
            ready=False,
            serving=True,
            terminating=True,
            hints={"forZones": ["z2", {"name": "z1"}], "forNodes": [{"name": "Node-B"}]},
            changedAt="1970-01-01T00:00:10Z",
        ) == Endpoint(
            address=parse("fd00::2"),
            port=80,
            ports=(("admin", 9090), ("web", 8080)),
            node_name="node-a",
            zone="z1",
            weight=0,
            ready=False,
            serving=True,
            terminating=True,
            zone_hints=("z1", "z2"),
            node_hints=("node-b",),
            changed_at=10.0,
        )

    def test_serving_follows_ready(self) -> None:
        assert endpoint().serving
        assert not endpoint(ready=False).serving
        assert endpoint(ready=False, serving=True).serving

    def test_null_is_absent(self) -> None:
        names = "port ports nodeName zone weight ready serving terminating hints changedAt"
        assert endpoint(**dict.fromkeys(names.split())) == endpoint()


class TestWarnings:
    @pytest.mark.parametrize(
        ("fields", "path", "message"),
        [
            ({"nodeport": 1}, "nodeport", "did you mean `nodePort` in `ports[]`?"),
            ({"nodePort": 1}, "nodePort", "did you mean `nodePort` in `ports[]`?"),
            ({"clusterIp": "10.96.0.1"}, "clusterIp", "did you mean `clusterIP`?"),
            ({"session_affinity": "ClientIP"}, "session_affinity", "did you mean `sessionAffinity`?"),
            ({"ports": [{"port": 80, "nodeport": 1}]}, "ports[0].nodeport", "did you mean `nodePort`?"),
            ({"colour": "red"}, "colour", "unknown field, ignored"),
            ({"kind": "Service"}, "", "paste what is under `spec`"),
            ({"externalIPs": ["192.0.2.1", "192.0.2.1"]}, "externalIPs[1]", "already at externalIPs[0]"),
            (
                {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 9}}},
                "sessionAffinityConfig.clientIP.timeoutSeconds",
                "has no effect",
            ),
            (
                {"externalIPs": ["192.0.2.1"], "loadBalancerIPs": ["192.0.2.1"]},
                "externalIPs",
                "is in loadBalancerIPs, too",
            ),
            ({"changedAt": "yesterday"}, "changedAt", "expected a time such as"),
            ({"changedAt": "2026-01-01T00:00:00"}, "changedAt", "expected a time such as"),
        ],
    )
    def test_service_stays_usable(self, fields: dict[str, object], path: str, message: str) -> None:
        found = warnings({"ports": [{"port": 80}], **fields})
        assert [where for where, _ in found] == [path]
        assert message in found[0][1]

    @pytest.mark.parametrize(
        ("fields", "path", "message"),
        [
            ({"nodename": "a"}, "nodename", "did you mean `nodeName`?"),
            ({"forZones": ["a"]}, "forZones", "did you mean `forZones` in `hints`?"),
            ({"hints": {"zones": ["a"]}}, "hints.zones", "did you mean `forZones`?"),
            ({"terminating": True}, "terminating", "`ready` is not false"),
        ],
    )
    def test_endpoint_stays_usable(self, fields: dict[str, object], path: str, message: str) -> None:
        found = warnings({"address": "10.1.1.2", **fields})
        assert [where for where, _ in found] == [path]
        assert message in found[0][1]

    def test_an_unknown_field_has_a_reason_of_its_own(self) -> None:
        parsed = endpoint_from_value(b'{"address":"10.1.1.2","x":1}')
        assert [problem.reason for problem in parsed.problems] == [Reason.UNKNOWN_FIELD]


class TestBadRecords:
    def test_there_are_enough(self) -> None:
        assert len(BAD_SERVICES) + len(BAD_ENDPOINTS) >= 40

    @pytest.mark.parametrize("case", BAD_SERVICES, ids=lambda case: case.name)
    def test_service(self, case: BadRecord) -> None:
        parsed = service_from_json(case.value)
        assert parsed.record is None
        errors = [p for p in parsed.problems if p.severity is Severity.ERROR]
        assert [p.path for p in errors] == [case.path]
        assert case.message in errors[0].message

    @pytest.mark.parametrize("case", BAD_ENDPOINTS, ids=lambda case: case.name)
    def test_endpoint(self, case: BadRecord) -> None:
        parsed = endpoint_from_value(case.value)
        assert parsed.record is None
        errors = [p for p in parsed.problems if p.severity is Severity.ERROR]
        assert [p.path for p in errors] == [case.path]
        assert case.message in errors[0].message

    def test_all_problems_are_listed_at_once(self) -> None:
        parsed = service_from_json(
            b'{"type":"X","clusterIP":"127.0.0.1","ports":[{"port":"80","nodeport":1},{"port":0}],"scheduler":3}'
        )
        assert [(p.path, p.severity.value) for p in parsed.problems] == [
            ("ports[0].port", "error"),
            ("scheduler", "error"),
            ("type", "error"),
            ("clusterIP", "error"),
            ("ports[1].port", "error"),
            ("ports[0].name", "error"),
            ("ports[1].name", "error"),
            ("ports[0].nodeport", "warning"),
        ]

    def test_a_long_list_of_problems_is_cut(self) -> None:
        parsed = service_from_json(json.dumps({"ports": [{"port": 0, "name": "a"}] * 100}).encode())
        assert parsed.record is None
        assert len(parsed.problems) == 51
        assert "problems more" in parsed.problems[-1].message

    @given(st.binary(max_size=80))
    def test_any_bytes_get_an_answer(self, value: bytes) -> None:
        for parsed in (service_from_json(value), endpoint_from_value(value)):
            assert parsed.record is not None or parsed.problems

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-1, 70000)
            | st.floats()
            | st.sampled_from(["", "None", "10.96.0.1"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(FIELDS),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=20,
        )
    )
    def test_any_json_gets_an_answer(self, value: object) -> None:
        raw = json.dumps(value).encode()
        for parsed in (service_from_json(raw), endpoint_from_value(raw)):
            errors = [p for p in parsed.problems if p.severity is Severity.ERROR]
            assert (parsed.record is None) == bool(errors)


@given(st.ip_addresses())
def test_the_quick_look_at_special_addresses_misses_none(address: object) -> None:
    packed = parse(str(address))
    assert (special(packed) or "").startswith(special_kind(packed) or "")
    if special(packed) is None:
        assert special_kind(packed) is None
