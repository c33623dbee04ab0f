"""Addresses, local routes and proxy neighbours, checked against what ip(8) shows."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from edgeproxy.address import parse, parse_network
from edgeproxy.kernel.routes import (
    DeleteProxy,
    DeleteRoute,
    HostChange,
    HostWatch,
    Outcome,
    PutProxy,
    PutRoute,
    RouteOperation,
    Routes,
    State,
)
from edgeproxy.kernel.routes_codec import AddressFlag, Proxy, Table
from tests.native.conftest import sh

SERVICES4, SERVICES6 = parse_network("10.96.0.0/16"), parse_network("fd00:96::/112")
HOST4, HOST6 = parse("10.0.0.5"), parse("fd00::5")


@pytest.fixture
def routes(netns: None) -> Iterator[Routes]:
    """A host with one interface, an IPv4 address and a default route."""
    sh("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    for name in ("eth0", "peer0"):
        sh("ip", "link", "set", name, "up")
    sh("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    sh("ip", "route", "add", "default", "via", "10.0.0.1")
    with Routes() as opened:
        yield opened


def _do(routes: Routes, operation: RouteOperation) -> Outcome:
    (outcome,) = routes.apply([operation])
    return outcome


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)


def _local(*words: str) -> str:
    return sh("ip", *words, "route", "show", "table", "local", "proto", "96")


def test_addresses_are_those_ip_shows(routes: Routes) -> None:
    sh("ip", "address", "add", "10.0.0.6/24", "dev", "eth0")
    sh("ip", "address", "add", "192.0.2.1", "peer", "192.0.2.2/32", "dev", "eth0")
    sh("ip", "address", "add", "fd00::5/64", "dev", "eth0", "nodad")
    sh("ip", "address", "add", "fd00::6/64", "dev", "eth0", "nodad", "preferred_lft", "0")
    shown = {
        (
            info["local"],
            info["prefixlen"],
            link["ifname"],
            info.get("secondary", False),
            info.get("deprecated", False),
        )
        for link in json.loads(sh("ip", "-j", "address"))
        for info in link["addr_info"]
    }
    family = {4: socket.AF_INET, 16: socket.AF_INET6}
    found = {
        (
            socket.inet_ntop(family[len(a.address)], a.address),
            a.prefix,
            a.interface,
            bool(a.flags & AddressFlag.SECONDARY),
            bool(a.flags & AddressFlag.DEPRECATED),
        )
        for a in routes.addresses()
    }
    assert found == shown
    usable = {str(a) for a in routes.addresses() if a.usable}
    assert usable == {"10.0.0.5/24 dev eth0", "192.0.2.1/32 dev eth0", "fd00::5/64 dev eth0"}


def test_interfaces(routes: Routes) -> None:
    shown = {
        (link["ifindex"], link["ifname"], "UP" in link["flags"])
        for link in json.loads(sh("ip", "-j", "link"))
    }
    assert {(i.index, i.name, i.up) for i in routes.interfaces()} == shown
    assert routes.loopback_up()
    sh("ip", "link", "set", "lo", "down")
    assert not routes.loopback_up()


def test_put_replace_and_delete(routes: Routes) -> None:
    sh("ip", "address", "add", "10.0.0.6/24", "dev", "eth0")
    sh("ip", "address", "add", "fd00::5/64", "dev", "eth0", "nodad")
    sh("ip", "address", "add", "fd00::6/64", "dev", "eth0", "nodad")
    for network, first, second, words in (
        (SERVICES4, HOST4, parse("10.0.0.6"), ()),
        (SERVICES6, HOST6, parse("fd00::6"), ("-6",)),
    ):
        for source in (first, first, second, None, second):
            assert _do(routes, PutRoute(network, source)).state is State.DONE
            (own,) = (r for r in routes.own() if r.network == network)
            assert own.source == source
            assert own.interface == "lo"
            shown = _local(*words).splitlines()
            assert len(shown) == 1
            assert shown[0].startswith(f"local {network} dev lo")
        assert _do(routes, DeleteRoute(network)).state is State.DONE
        assert _do(routes, DeleteRoute(network)).state is State.DONE
        assert not _local(*words)


def test_routes_of_others_stay(routes: Routes) -> None:
    other = parse_network("10.97.0.0/16")
    sh("ip", "route", "add", "local", str(other), "dev", "lo", "table", "local")
    sh("ip", "-6", "route", "add", "local", str(SERVICES6), "dev", "lo", "table", "local")
    for network in (other, SERVICES6, parse_network("10.0.0.5/32")):
        outcome = _do(routes, PutRoute(network, None))
        assert outcome.state is State.TAKEN
        assert str(network) in outcome.reason
        assert _do(routes, DeleteRoute(network)).state is State.DONE
    assert str(other) in sh("ip", "route", "show", "table", "local")
    assert str(SERVICES6) in sh("ip", "-6", "route", "show", "table", "local")
    assert "local 10.0.0.5" in sh("ip", "route", "show", "table", "local")
    assert not routes.own()


def test_a_source_that_is_not_there_yet(routes: Routes) -> None:
    outcome = _do(routes, PutRoute(SERVICES4, parse("10.0.0.77")))
    assert outcome.state is State.WAITING
    assert "10.0.0.77" in outcome.reason
    with HostWatch(routes) as watch:
        sh("ip", "address", "add", "fd00::5/64", "dev", "eth0")
        assert _do(routes, PutRoute(SERVICES6, HOST6)).state is State.WAITING
        assert routes.host_source(socket.AF_INET6) is None
        assert HostChange.ADDRESS in watch.read()
        _until(lambda: HostChange.ADDRESS in watch.read(), "notice of the end of DAD")
        _until(lambda: _do(routes, PutRoute(SERVICES6, HOST6)).state is State.DONE, "DAD")
    assert routes.host_source(socket.AF_INET6) == HOST6


def test_loopback_down(routes: Routes) -> None:
    sh("ip", "link", "set", "lo", "down")
    outcome = _do(routes, PutRoute(SERVICES6, None))
    assert outcome.state is State.LOOPBACK_DOWN
    assert "ip link set lo up" in outcome.reason


def test_host_source_and_reading_of_routes(routes: Routes) -> None:
    assert routes.host_source(socket.AF_INET) == HOST4
    sh("ip", "route", "add", "172.16.0.0/12", "via", "10.0.0.9", "metric", "7")
    sh("ip", "route", "add", "172.31.0.0/16", "nexthop", "via", "10.0.0.8", "nexthop", "via", "10.0.0.9")
    found = {str(r.network): r for r in routes.routes()}
    assert set(found) >= {"0.0.0.0/0", "10.0.0.0/24", "172.16.0.0/12", "172.31.0.0/16"}
    assert found["0.0.0.0/0"].default
    via = found["172.16.0.0/12"]
    assert (via.gateway, via.metric, via.interface, via.table) == (parse("10.0.0.9"), 7, "eth0", Table.MAIN)
    spread = found["172.31.0.0/16"]
    assert (spread.gateway, spread.interface) == (parse("10.0.0.8"), "eth0")


def test_notices_leave_out_our_own_changes(routes: Routes) -> None:
    with HostWatch(routes) as watch:
        assert _do(routes, PutRoute(SERVICES4, HOST4)).state is State.DONE
        assert not watch.read()
        sh("ip", "route", "add", "198.51.100.0/24", "via", "10.0.0.1")
        assert watch.read() == {HostChange.ROUTE}
        sh("ip", "route", "delete", "local", str(SERVICES4), "table", "local")
        assert watch.read() == {HostChange.ROUTE}
        sh("ip", "link", "add", "veth1", "type", "veth", "peer", "name", "veth2")
        assert HostChange.LINK in watch.read()
        sh("ip", "address", "delete", "10.0.0.5/24", "dev", "eth0")
        assert HostChange.ADDRESS in watch.read()


def test_proxy_neighbours(routes: Routes) -> None:
    address = parse("fd00::99")
    for _ in range(2):
        assert _do(routes, PutProxy(address, "eth0")).state is State.DONE
        assert routes.proxies() == [Proxy(address, "eth0")]
    assert "fd00::99 dev eth0 proxy proto 96" in sh("ip", "-6", "neighbour", "show", "proxy")
    for _ in range(2):
        assert _do(routes, DeleteProxy(address, "eth0")).state is State.DONE
        assert not routes.proxies()
    sh("ip", "-6", "neighbour", "add", "proxy", "fd00::99", "dev", "eth0")
    assert _do(routes, PutProxy(address, "eth0")).state is State.TAKEN
    assert _do(routes, DeleteProxy(address, "eth0")).state is State.TAKEN
    assert routes.proxies() == [Proxy(address, "eth0", ours=False)]
    assert _do(routes, PutProxy(address, "nothere")).state is State.REFUSED
    assert _do(routes, DeleteProxy(address, "nothere")).state is State.DONE
