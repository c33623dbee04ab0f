"""What a host contributes: sources, what cannot be installed, what no record may take over."""

from __future__ import annotations

import msgspec
import pytest

from edgeproxy.address import Network, parse, parse_network
from edgeproxy.kernel.routes_codec import AddressFlag, HostAddress, Route, RouteType, Table
from edgeproxy.kernel.ruleset import masquerade_ports
from edgeproxy.model import Reason
from edgeproxy.settings import (
    Etcd,
    Health,
    Listen,
    Metrics,
    Node,
    NodePortAddresses,
    PortRange,
    Proxy,
    Settings,
)
from edgeproxy.surroundings import HostFacts, Surroundings, survey

HOST4, HOST6, GATEWAY = parse("10.1.0.11"), parse("fd00:1::11"), parse("10.1.0.2")
BOOT, STATIC = 3, 4


def route(network: str, gateway: str = "", source: str = "") -> Route:
    return Route(
        parse_network(network),
        Table.MAIN,
        RouteType.UNICAST,
        BOOT,
        "eth0",
        parse(gateway) if gateway else None,
        parse(source) if source else None,
    )


FACTS = HostFacts(
    addresses=(
        HostAddress(parse("127.0.0.1"), 8, "lo"),
        HostAddress(HOST4, 24, "eth0"),
        HostAddress(HOST6, 64, "eth0"),
        HostAddress(parse("10.8.0.1"), 24, "eth1"),
    ),
    routes=(route("0.0.0.0/0", "10.1.0.2"), route("10.1.0.0/24"), route("10.8.0.0/24")),
    name_servers=(parse("9.9.9.9"),),
)


def surveyed(facts: HostFacts = FACTS, **sections: object) -> Surroundings:
    return survey(msgspec.structs.replace(Settings(node=Node(name="host0")), **sections), facts)


class TestServiceCidrs:
    @pytest.mark.parametrize(
        ("cidr", "obstacle"),
        [
            ("10.96.0.0/16", ""),
            ("10.1.0.0/16", "the host's address 10.1.0.11/24 dev eth0"),
            ("10.1.0.128/25", "the route 10.1.0.0/24"),
            ("10.0.0.0/8", "the host's address"),
            ("203.0.113.0/24", "the etcd endpoint 203.0.113.9"),
            ("fd00:1::/48", "the host's address fd00:1::11/64 dev eth0"),
        ],
    )
    def test_one_that_overlaps_is_left_out_and_said(self, cidr: str, obstacle: str) -> None:
        network, good = parse_network(cidr), parse_network("172.31.0.0/16")
        found = surveyed(
            proxy=Proxy(service_cidrs=(good, network)), etcd=Etcd(endpoints=("https://203.0.113.9:2379",))
        )
        if not obstacle:
            assert found.proxy.service_cidrs == (good, network)
            assert found.findings == ()
            return
        assert found.proxy.service_cidrs == found.frame.service_cidrs == (good,)
        (finding,) = found.findings
        assert (finding.path, finding.reason) == ("[proxy] service_cidrs", Reason.ROUTE)
        assert f"service CIDR {cidr} overlaps {obstacle}" in finding.message

    def test_the_default_route_overlaps_nothing(self) -> None:
        assert surveyed().findings == ()


class TestSources:
    def test_those_of_the_default_route_and_else_the_first_address(self) -> None:
        found = surveyed()
        assert found.sources == (HOST4, HOST6)
        assert found.source_for(parse("10.96.0.1")) == HOST4
        assert found.source_for(parse("fd00:96::1")) == HOST6

    def test_a_host_without_ipv6_gets_no_routes_of_it(self) -> None:
        facts = msgspec.structs.replace(FACTS, addresses=FACTS.addresses[:2])
        found = surveyed(facts)
        assert not found.ipv6
        assert found.sources == (HOST4, None)
        assert found.local_networks() == (parse_network("10.96.0.0/16"), parse_network("169.254.96.0/20"))
        assert parse_network("fd96:6564:6765::/64") in surveyed().local_networks()

    def test_a_floating_address_is_none(self) -> None:
        floating = HostAddress(parse("10.1.0.99"), 24, "eth0", AddressFlag.SECONDARY)
        facts = msgspec.structs.replace(FACTS, addresses=(floating, *FACTS.addresses))
        assert surveyed(facts).sources[0] == HOST4


class TestNode:
    def test_every_address_but_loopback(self) -> None:
        assert surveyed().node.addresses == {HOST4, HOST6, parse("10.8.0.1")}

    def test_configured_ones_win(self) -> None:
        assert surveyed(node=Node(name="a", addresses=(HOST4,))).node.addresses == {HOST4}

    @pytest.mark.parametrize(
        ("chosen", "networks"),
        [
            (NodePortAddresses(), ()),
            (NodePortAddresses((parse_network("10.8.0.0/24"),)), (parse_network("10.8.0.0/24"),)),
            (NodePortAddresses(primary=True), (Network(HOST4, 32), Network(HOST6, 128))),
        ],
    )
    def test_node_port_addresses(self, chosen: NodePortAddresses, networks: tuple[Network, ...]) -> None:
        found = surveyed(proxy=Proxy(node_port_addresses=chosen))
        assert found.frame.node_port_addresses == networks

    def test_loopback_down_is_said(self) -> None:
        (finding,) = surveyed(msgspec.structs.replace(FACTS, loopback_up=False)).findings
        assert "ip link set lo up" in finding.message


class TestRefusals:
    @pytest.mark.parametrize(
        ("endpoint", "port"),
        [
            ("http://127.0.0.1:2379", 2379),
            ("http://localhost:12379", 12379),
            ("https://[::1]:2379", 2379),
            ("https://10.1.0.11:2400", 2400),
            ("https://[fd00:1::11]:2400", 2400),
            ("https://10.1.0.12:2400", 0),
            ("https://etcd.example.org:2400", 0),
        ],
    )
    def test_ports_of_an_etcd_on_this_host(self, endpoint: str, port: int) -> None:
        found = surveyed(etcd=Etcd(endpoints=(endpoint,))).refusals.node_ports
        assert {number for number, holder in found.items() if holder == "etcd"} == ({port} if port else set())

    def test_ports_of_our_own(self) -> None:
        found = surveyed(health=Health(listen=Listen("0.0.0.0", 31000)), metrics=Metrics(listen=None))
        assert found.refusals.node_ports == {31000: "[health] listen", 2379: "etcd"}

    def test_addresses(self) -> None:
        found = surveyed(etcd=Etcd(endpoints=("https://10.1.0.12:2379", "https://etcd.example.org:2379")))
        assert found.refusals.addresses == {
            parse("10.1.0.12"): "an etcd endpoint",
            GATEWAY: "a gateway of this host",
            parse("9.9.9.9"): "a name server of this host",
        }


@pytest.mark.parametrize(
    ("node_ports", "ports"),
    [((30000, 36999), (1024, 29999)), ((1024, 20000), (20001, 65535)), ((30000, 32767), (32768, 65535))],
)
def test_masqueraded_flows_never_leave_from_a_node_port(
    node_ports: tuple[int, int], ports: tuple[int, int]
) -> None:
    assert masquerade_ports(PortRange(*node_ports)) == ports
