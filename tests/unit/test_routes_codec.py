"""Addresses and routes without a kernel: the choice of a source, and messages."""

from __future__ import annotations

import socket
import struct

import pytest

from edgeproxy.address import Address, parse, parse_network
from edgeproxy.kernel.netlink import attribute, u8, u32
from edgeproxy.kernel.routes_codec import (
    AddressFlag,
    HostAddress,
    Proxy,
    Route,
    RouteType,
    Scope,
    Table,
    choose_source,
    host_address,
    local_route,
    proxy,
    proxy_neighbour,
    route,
)

V4, V6 = socket.AF_INET, socket.AF_INET6
SETTLED = AddressFlag.PERMANENT


def _address(words: str, interface: str = "eth0", flags: AddressFlag = SETTLED, **more: int) -> HostAddress:
    base, _, prefix = words.partition("/")
    return HostAddress(parse(base), int(prefix), interface, flags, **more)


def _default(interface: str, gateway: str = "", source: str = "", metric: int = 0) -> Route:
    any4 = ":" not in (gateway or source)
    return Route(
        parse_network("0.0.0.0/0" if any4 else "::/0"),
        Table.MAIN,
        RouteType.UNICAST,
        3,
        interface,
        parse(gateway) if gateway else None,
        parse(source) if source else None,
        metric,
    )


ETH0, ETH1 = _address("10.0.0.5/24"), _address("10.1.0.5/24", "eth1")


@pytest.mark.parametrize(
    ("addresses", "routes", "chosen"),
    [
        ([ETH0, ETH1], [_default("eth1", "10.1.0.1")], "10.1.0.5"),
        ([ETH0, ETH1], [_default("eth1", "10.1.0.1", metric=9), _default("eth0", "10.0.0.1", metric=5)], "10.0.0.5"),
        ([ETH0, _address("10.2.0.5/24")], [_default("eth0", "10.2.0.1")], "10.2.0.5"),
        ([ETH0, _address("10.0.0.9/32")], [_default("eth0", "10.0.0.1", source="10.0.0.9")], "10.0.0.9"),
        # a named source that may not be used, or is not there
        ([ETH0, _address("10.0.0.9/24", flags=AddressFlag.SECONDARY)],
         [_default("eth0", "10.0.0.1", source="10.0.0.9")], "10.0.0.5"),
        ([ETH0], [_default("eth0", "10.0.0.1", source="10.0.0.9")], "10.0.0.5"),
        # floating: keepalived's by its protocol number, else a lone host address comes last
        ([_address("10.0.0.9/24", protocol=18), ETH0], [_default("eth0", "10.0.0.1")], "10.0.0.5"),
        ([_address("10.0.0.9/32"), ETH0], [_default("eth0", "192.0.2.1")], "10.0.0.5"),
        ([_address("10.0.0.9/32")], [_default("eth0", "192.0.2.1")], "10.0.0.9"),
        # a default route through an interface without an address
        ([ETH1], [_default("ppp0")], "10.1.0.5"),
        # none at all
        ([ETH1, ETH0], [], "10.1.0.5"),
        ([_address("127.0.0.1/8", "lo", scope=Scope.HOST), _address("169.254.1.1/16", scope=Scope.LINK)], [], None),
        ([], [_default("eth0", "10.0.0.1")], None),
    ],
)  # fmt: skip
def test_choice_of_the_source(addresses: list[HostAddress], routes: list[Route], chosen: str | None) -> None:
    assert choose_source(V4, addresses, routes) == (parse(chosen) if chosen else None)
    assert choose_source(V6, addresses, routes) is None


@pytest.mark.parametrize(
    "flag", [AddressFlag.TENTATIVE, AddressFlag.DEPRECATED, AddressFlag.DAD_FAILED, AddressFlag.SECONDARY]
)
def test_unsettled_addresses_are_never_the_source(flag: AddressFlag) -> None:
    routes = [_default("eth0", "fe80::1")]
    bad = _address("fd00::5/64", flags=flag | AddressFlag.PERMANENT)
    assert choose_source(V6, [bad], routes) is None
    assert choose_source(V6, [bad, _address("fd00::6/64")], routes) == parse("fd00::6")


def test_our_route_on_the_wire() -> None:
    assert local_route(parse_network("10.96.0.0/16"), parse("10.0.0.5")) == bytes.fromhex(
        "02100000" "ff60fe02" "00000000" "080001000a600000" "0800040001000000" "080007000a000005"
    )  # fmt: skip
    found = route(local_route(parse_network("fd00::/112"), None), {1: "lo"})
    assert found == Route(parse_network("fd00::/112"), 255, 2, 96, "lo")
    assert found.ours
    assert not found.default


def test_reading_a_route() -> None:
    hops = b"".join(
        struct.pack("=HBBi", 16, 0, 0, index) + attribute(5, parse(gateway))
        for index, gateway in ((7, "10.0.0.1"), (8, "10.0.0.2"))
    )
    head = struct.pack("=BBBBBBBBI", V4, 0, 0, 0, 0, 186, 0, 1, 0)
    found = route(head + u32(15, 1000) + u32(6, 20) + attribute(9, hops), {7: "eth0"})
    assert found == Route(parse_network("0.0.0.0/0"), 1000, 1, 186, "eth0", parse("10.0.0.1"), None, 20)
    assert not found.default
    assert route(struct.pack("=BBBBBBBBI", 28, 0, 0, 0, 0, 0, 0, 1, 0), {}) is None


def test_reading_an_address() -> None:
    head = struct.pack("=BBBBI", V4, 32, 0x80, 0, 3)
    near, far = attribute(2, parse("192.0.2.1")), attribute(1, parse("192.0.2.2"))
    found = host_address(head + far + near + u32(8, 0x81) + u8(11, 18), {3: "ppp0"})
    assert found is not None
    assert str(found) == "192.0.2.1/32 dev ppp0"
    assert found.flags & AddressFlag.SECONDARY
    assert found.protocol == 18
    assert not found.usable
    assert host_address(head, {}) is None


def test_proxy_neighbours() -> None:
    address = Address(parse("fd00::9"))
    payload = proxy_neighbour(address, 5)
    assert proxy(payload, {5: "eth0"}) == Proxy(address, "eth0", ours=True)
    assert proxy(payload[:-8], {5: "eth0"}) == Proxy(address, "eth0", ours=False)
    ordinary = payload[:10] + b"\0" + payload[11:]
    assert proxy(ordinary, {5: "eth0"}) is None
