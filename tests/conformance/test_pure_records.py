"""Records and change tracking, as far as packets add nothing: KP-006 to KP-032."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from edgeproxy.address import parse
from edgeproxy.kernel.conntrack import Flow, Selection
from edgeproxy.model import Protocol, Reason, SetName
from tests.conformance.behaviour import kp
from tests.conformance.paper import WEB, PaperHost, addresses, at, cluster_ip, sockets
from tests.fake_kernel import FakeConntrack
from tests.unit.site import Record

PERSISTENT = 0x01
"""IP_VS_SVC_F_PERSISTENT."""


@pytest.fixture
def host() -> PaperHost:
    return PaperHost()


@kp("KP-003", "A headless service (clusterIP None) makes nothing and is no error")
@pytest.mark.parametrize("ports", [[{"port": 80}], []])
def test_kp_003_headless(host: PaperHost, ports: list[dict[str, object]]) -> None:
    host.serve({"clusterIP": "None", "ports": ports}, at(1))
    assert host.servers() == set()
    assert host.verdicts() == {}
    assert host.findings("web") == []


@kp("KP-004", "An ExternalName service with a cluster IP left in its record is ignored")
def test_kp_004_external_name_with_a_cluster_ip(host: PaperHost) -> None:
    ports = [{"port": 80, "nodePort": 36200}]
    host.serve(cluster_ip(type="ExternalName", externalIPs=["203.0.113.1"], ports=ports), at(1))
    assert host.servers() == set()
    assert host.verdicts() == {}
    assert host.node_ports() == set()


@kp("KP-005", "A service without a cluster IP, or with an empty one, makes nothing and is no error")
@pytest.mark.parametrize("empty", ["", None])
def test_kp_005_no_cluster_ip(host: PaperHost, empty: str | None) -> None:
    host.serve({"clusterIP": empty, "ports": [{"port": 80}]}, at(1))
    assert host.servers() == set()
    assert host.findings("web") == []


@kp("KP-006", "Of services with ten ports, all but one removed at once: exactly the remaining one's are left")
def test_kp_006_all_but_one_removed_in_one_batch(host: PaperHost) -> None:
    ports = [{"name": f"p{number}", "port": 8000 + number} for number in range(3)]
    records: dict[str, Record | None] = {
        name: {"clusterIP": f"10.96.0.{number}", "ports": ports[:count]}
        for number, (name, count) in enumerate((("a", 3), ("b", 3), ("c", 2), ("d", 2)), 1)
    }
    host.put(records)
    assert len(host.servers()) == 10
    host.put(dict.fromkeys(("a", "c", "d")))
    assert host.servers() == {f"tcp/10.96.0.2:{8000 + number}" for number in range(3)}
    assert set(host.verdicts()) == {f"10.96.0.2:{8000 + number}" for number in range(3)}


@kp("KP-007", "An identical record that arrives again writes nothing")
def test_kp_007_the_same_record_again(host: PaperHost) -> None:
    host.serve(cluster_ip(), at(1))
    before = host.writes()
    host.put({"web": cluster_ip(), "web/endpoints/0": at(1)})
    assert host.writes() == before
    host.put({"web/endpoints/0": at(2)})
    assert host.writes() > before


@kp("KP-008", "A service that changes and changes back within one batch is no change")
def test_kp_008_there_and_back_in_one_batch(host: PaperHost) -> None:
    host.serve(cluster_ip(), at(1))
    before = host.writes()
    there, back = host.write({"web": cluster_ip(scheduler="lc")}), host.write({"web": cluster_ip()})
    host.reconciler.apply([*there, *back], host.revision)
    host.sync()
    assert host.writes() == before


@kp("KP-010", "A service with an IPv6 cluster IP alone makes nothing in IPv4, and that is no error")
def test_kp_010_ipv6_only(host: PaperHost) -> None:
    ports = [{"port": 80, "nodePort": 36200}]
    host.serve({"clusterIP": "fd00:96::10", "ports": ports}, at(1), {"address": "fd00:1:1::1"})
    assert host.backends("fd00:96::10") == ["[fd00:1:1::1]:80"]
    assert not [server for server in host.servers() if "[" not in server]
    assert host.findings("web") == []


@kp("KP-012", "External addresses and source ranges of both families: each family takes its own")
def test_kp_012_lists_of_both_families(host: PaperHost) -> None:
    host.serve(
        cluster_ip(
            externalIPs=["203.0.113.1", "2001:db8::1"],
            loadBalancerIPs=["203.0.113.2", "2001:db8::2"],
            loadBalancerSourceRanges=["10.1.0.0/16", "fd00:1::/32"],
        ),
        at(1),
        {"address": "fd00:1:1::1"},
    )
    for address in ("203.0.113.1", "203.0.113.2"):
        assert host.backends(address) == ["10.1.1.1:80"]
    for address in ("2001:db8::1", "2001:db8::2"):
        assert host.backends(address) == ["[fd00:1:1::1]:80"]
    for name, ip, first in (
        (SetName.SOURCES4, "203.0.113.2", "10.1.0.0"),
        (SetName.SOURCES6, "2001:db8::2", "fd00:1::"),
    ):
        [element] = host.elements(name)
        assert element.key == (parse(ip), Protocol.TCP, 80, parse(first))


@kp("KP-014", "A source range with blanks round it is honoured")
def test_kp_014_a_range_with_blanks(host: PaperHost) -> None:
    spec = cluster_ip(loadBalancerIPs=["203.0.113.2"], loadBalancerSourceRanges=["  10.1.0.0/16 "])
    host.serve(spec, at(1))
    [element] = host.elements(SetName.SOURCES4)
    assert (element.key[-1], element.until[-1]) == (parse("10.1.0.0"), parse("10.1.255.255"))
    assert host.findings("web") == []


@kp("KP-015", "Session affinity without a timeout lasts 10800 s")
def test_kp_015_default_affinity_timeout(host: PaperHost) -> None:
    host.serve(cluster_ip(sessionAffinity="ClientIP"), at(1))
    [server] = host.kernel.servers.values()
    assert (server.timeout, server.flags & PERSISTENT) == (10800, PERSISTENT)
    host.serve(cluster_ip(), at(1))
    [server] = host.kernel.servers.values()
    assert (server.timeout, server.flags & PERSISTENT) == (0, 0)


@kp("KP-018", "An endpoint record of a service that does not exist is counted and serves nothing")
def test_kp_018_endpoints_of_no_service(host: PaperHost) -> None:
    host.put({"other/endpoints/a": at(1), "endpoints/a": at(2)})
    assert host.servers() == set()
    assert host.reconciler.catalog.counts().stray == 1
    [finding] = host.findings("endpoints/a")
    assert finding.reason is Reason.BAD_KEY


@kp("KP-019", "An endpoint whose address is a host name is reported and not used")
def test_kp_019_a_host_name_as_address(host: PaperHost) -> None:
    host.serve(cluster_ip(), {"address": "db.example.org"}, at(1))
    assert host.backends(WEB) == sockets(1)
    [finding] = host.findings("web/endpoints/0")
    assert (finding.reason, finding.path) == (Reason.BAD_RECORD, "address")


@kp("KP-021", "An endpoint without an address is reported and left out, its neighbours are kept")
@pytest.mark.parametrize("empty", [{}, {"address": ""}, {"address": None}])
def test_kp_021_an_endpoint_without_address(host: PaperHost, empty: Record) -> None:
    host.serve(cluster_ip(), at(1), empty, at(2))
    assert host.backends(WEB) == sockets(1, 2)
    [finding] = host.findings("web/endpoints/1")
    assert finding.path == "address"


@kp("KP-022", "An endpoint port 0 is reported and gets no traffic; an absent or null one takes the service's")
def test_kp_022_endpoint_ports_that_are_none(host: PaperHost) -> None:
    host.serve(cluster_ip(), at(1, port=None), at(2, ports={"": None}), at(3, port=0), at(4, ports={"": 0}))
    assert host.backends(WEB) == sockets(1, 2)
    assert [finding.path for finding in host.findings("web/endpoints/2")] == ["port"]
    assert [finding.path for finding in host.findings("web/endpoints/3")] == ["ports."]


@kp("KP-023", "Two records of one address and port are one backend; it is local if either says so")
@pytest.mark.parametrize("nodes", [("host0", "host1"), ("host1", "host0")])
def test_kp_023_two_records_of_one_backend(host: PaperHost, nodes: tuple[str, str]) -> None:
    spec = cluster_ip(internalTrafficPolicy="Local")
    host.serve(spec, *(at(1, nodeName=node) for node in nodes), at(2, nodeName="host1"))
    assert host.backends(WEB) == sockets(1)


@kp("KP-024", "Endpoints may have different numbers for one port name: each keeps its own")
def test_kp_024_each_endpoint_its_own_port_number(host: PaperHost) -> None:
    spec = {"clusterIP": WEB, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}
    host.serve(spec, at(1, ports={"web": 8080}), at(2, ports={"web": 9090}))
    assert host.backends(WEB) == ["10.1.1.1:8080", "10.1.1.2:9090"]


@kp("KP-025", "Of two records of one service, deleting one takes its endpoint only, and not a shared one")
def test_kp_025_one_of_two_records_is_deleted(host: PaperHost) -> None:
    host.serve(cluster_ip(), at(1), at(2), at(1))
    host.put({"web/endpoints/0": None})
    assert host.backends(WEB) == sockets(1, 2)
    host.put({"web/endpoints/2": None})
    assert host.backends(WEB) == sockets(2)


@kp("KP-026", "An endpoint without conditions is ready, serving and not terminating")
@pytest.mark.parametrize("conditions", [{}, {"ready": None, "serving": None, "terminating": None}])
def test_kp_026_no_conditions(host: PaperHost, conditions: dict[str, object]) -> None:
    host.serve(cluster_ip(), at(1, **conditions), at(2, ready=False, serving=True, terminating=True))
    assert host.backends(WEB) == sockets(1)


@kp("KP-030", "When only TCP endpoints of a cluster IP change, the tracked connections are not even listed")
def test_kp_030_tcp_only(host: PaperHost, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Selection] = []

    def list_flows(_: FakeConntrack, chosen: Selection) -> Iterator[Flow]:
        listed.append(chosen)
        yield from ()

    monkeypatch.setattr(FakeConntrack, "flows", list_flows)
    host.serve(cluster_ip(), at(1), at(2))
    host.put({"web/endpoints/0": None})
    host.quiet()
    assert listed == []
    host.serve({"clusterIP": WEB, "ports": [{"port": 53, "protocol": "UDP"}]}, at(1), at(2))
    host.put({"web/endpoints/0": None})
    host.quiet()
    assert listed != []


@kp("KP-032", "A host that does not know its own name has no local endpoints, those without a name excepted")
def test_kp_032_no_own_name() -> None:
    host = PaperHost(name="")
    spec = cluster_ip(internalTrafficPolicy="Local")
    host.serve(spec, at(1, nodeName="host0"), at(2, nodeName=""), at(3), "10.1.0.11:8080")
    assert host.backends(WEB) == ["10.1.0.11:8080"]
    assert host.verdicts() == {f"{WEB}:80": "cluster_ip4"}


@kp("KP-106", "The node port of a service of one family opens in that family only")
@pytest.mark.parametrize(("vip", "family"), [("10.96.0.10", 4), ("fd00:96::10", 6)])
def test_kp_106_node_port_of_one_family(host: PaperHost, vip: str, family: int) -> None:
    ports = [{"port": 80, "nodePort": 36200}]
    host.serve({"clusterIP": vip, "ports": ports}, at(1), {"address": "fd00:1:1::1"})
    opened = {4: host.elements(SetName.NODE_PORTS4), 6: host.elements(SetName.NODE_PORTS6)}
    assert [len(opened[family]), len(opened[10 - family])] == [1, 0]


@kp("KP-113", "A node port that another service has is refused for the later one, by protocol")
def test_kp_113_a_node_port_in_use(host: PaperHost) -> None:
    host.serve({"clusterIP": WEB, "ports": [{"port": 80, "nodePort": 36200}]}, at(1))
    later = {"clusterIP": "10.96.0.11", "ports": [{"port": 80, "nodePort": 36200}]}
    host.serve(later, at(2), name="a")
    assert host.backends("169.254.96.1", 36200) == sockets(1)
    assert host.backends("10.96.0.11") == sockets(2)
    assert [(f.reason, f.path) for f in host.findings("a")] == [(Reason.CONFLICT, "ports[0].nodePort")]
    later["ports"] = [{"port": 80, "nodePort": 36200, "protocol": "UDP"}]
    host.serve(later, at(2), name="a")
    assert host.findings("a") == []
    assert host.backends("169.254.96.1", 36200, Protocol.UDP) == sockets(2)


@kp("KP-114", "A node port outside the range is refused; the rest of the service works")
def test_kp_114_a_node_port_outside_the_range(host: PaperHost) -> None:
    host.serve({"clusterIP": WEB, "ports": [{"port": 80, "nodePort": 29999}]}, at(1))
    assert host.node_ports() == set()
    assert host.backends(WEB) == sockets(1)
    [finding] = host.findings("web")
    assert (finding.reason, finding.path) == (Reason.REFUSED, "ports[0].nodePort")
    assert "30000-36999" in finding.message


@kp(
    "KP-120",
    "An external address is served whether or not the host has it; only one it has not needs a route",
)
def test_kp_120_external_addresses_of_the_host_and_not(host: PaperHost) -> None:
    host.serve(cluster_ip(externalIPs=["203.0.113.1", "10.1.0.11"]), at(1))
    assert host.backends("203.0.113.1") == host.backends("10.1.0.11") == sockets(1)
    assert [str(n) for n in host.kernel.routes if parse("203.0.113.1") in n] == ["203.0.113.1/32"]
    assert not any(parse("10.1.0.11") in network for network in host.kernel.routes)
    # Only what the host does not own loses its other ports.
    assert addresses(host.elements(SetName.ADDRESSES4)) == {WEB, "203.0.113.1"}


@kp("KP-128", "Source ranges make one entry for each range and served port; without ranges there is none")
def test_kp_128_entries_for_source_ranges(host: PaperHost) -> None:
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    spec = cluster_ip(ports=ports, loadBalancerIPs=["203.0.113.2"], externalIPs=["203.0.113.3"])
    host.serve(spec | {"loadBalancerSourceRanges": ["10.1.0.0/24", "10.2.0.0/24"]}, at(1))
    found = {element.key for element in host.elements(SetName.SOURCES4)}
    assert found == {
        (parse("203.0.113.2"), Protocol.TCP, port, parse(first))
        for port in (80, 81)
        for first in ("10.1.0.0", "10.2.0.0")
    }
    assert host.verdicts()["203.0.113.2:80"] == "ranged_cluster4"
    assert host.verdicts()["203.0.113.3:80"] == "external_cluster4"
    host.serve(spec, at(1))
    assert host.elements(SetName.SOURCES4) == []
    assert host.verdicts()["203.0.113.2:80"] == "external_cluster4"


@kp("KP-134", "When a service loses one of its ports its address stays; with the last port it goes")
def test_kp_134_ports_go_one_by_one(host: PaperHost) -> None:
    spec = {"loadBalancerIPs": ["203.0.113.2"]}
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    for count, served in ((2, True), (1, True), (0, False)):
        host.put({"web": {**spec, "ports": ports[:count]} if count else None})
        assert len(host.servers()) == count
        assert addresses(host.elements(SetName.ADDRESSES4)) == ({"203.0.113.2"} if served else set())
        assert any(parse("203.0.113.2") in network for network in host.kernel.routes) is served


@kp("KP-136", "A load balancer service with node port 0 opens none, its addresses work")
def test_kp_136_node_port_0(host: PaperHost) -> None:
    spec = {
        "type": "LoadBalancer",
        "loadBalancerIPs": ["203.0.113.2"],
        "allocateLoadBalancerNodePorts": False,
    }
    host.serve({**spec, "ports": [{"port": 80, "nodePort": 0}]}, at(1))
    assert host.backends("203.0.113.2") == sockets(1)
    assert host.node_ports() == set()
    assert host.findings("web") == []


def test_the_host_on_paper_knows_what_it_is_asked() -> None:
    """The words above must be able to say no."""
    host = PaperHost()
    host.serve(cluster_ip(), at(1, weight=0), at(2))
    assert host.backends(WEB) == sockets(2)
    with pytest.raises(KeyError):
        host.backends("10.96.0.99")
    assert msgspec.structs.asdict(host.settings.node)["zone"] == "east"
