"""Our local routes: what is wanted comes, what is not goes, what stands in the way is told."""

from __future__ import annotations

import msgspec
import pytest

from edgeproxy.address import Network, parse, parse_network
from edgeproxy.kernel.routes_codec import HostAddress, Route, RouteType, Table
from edgeproxy.localroutes import LocalRoutes
from edgeproxy.model import Reason
from edgeproxy.surroundings import Surroundings, survey
from tests.fake_kernel import FakeKernel, FakeRoutes
from tests.unit.site import FACTS, HOST4, HOST6, SETTINGS

CIDR, ANCHORS, ANCHORS6 = map(parse_network, ("10.96.0.0/16", "169.254.96.0/20", "fd96:6564:6765::/64"))
EXTERNAL = parse("192.0.2.1")
SINGLE = Network(EXTERNAL, 32)


@pytest.fixture
def kernel() -> FakeKernel:
    kernel = FakeKernel()
    kernel.addresses = FACTS.addresses
    return kernel


def routes(kernel: FakeKernel, surroundings: Surroundings) -> LocalRoutes:
    made = LocalRoutes(FakeRoutes(kernel), surroundings)
    made.read()
    return made


def test_each_names_the_address_the_host_speaks_from(kernel: FakeKernel) -> None:
    around = survey(SETTINGS, FACTS)
    routes(kernel, around).ensure(around, [EXTERNAL])
    four, six = parse(HOST4), parse(HOST6)
    assert kernel.routes == {CIDR: four, ANCHORS: four, SINGLE: four, ANCHORS6: six}


def test_what_is_there_is_not_written_again(kernel: FakeKernel) -> None:
    around = survey(SETTINGS, FACTS)
    routes(kernel, around).ensure(around, [EXTERNAL])
    writes = kernel.writes
    again = routes(kernel, around)
    assert again.read() == {EXTERNAL}
    again.ensure(around, [EXTERNAL])
    again.add_addresses([EXTERNAL])
    assert (kernel.writes, again.changes) == (writes, 0)


def test_a_new_source_is_written(kernel: FakeKernel) -> None:
    around = survey(SETTINGS, FACTS)
    mine = routes(kernel, around)
    mine.ensure(around, [])
    moved = HostAddress(parse("10.1.0.12"), 24, "eth0")
    kernel.addresses = (moved, FACTS.addresses[1])
    mine.ensure(survey(SETTINGS, msgspec.structs.replace(FACTS, addresses=kernel.addresses)), [])
    assert kernel.routes[CIDR] == moved.address


def test_what_nobody_wants_goes(kernel: FakeKernel) -> None:
    around = survey(SETTINGS, FACTS)
    mine = routes(kernel, around)
    mine.ensure(around, [EXTERNAL])
    other = parse_network("10.97.0.0/16")
    proxy = msgspec.structs.replace(SETTINGS.proxy, service_cidrs=(other,))
    mine.ensure(survey(msgspec.structs.replace(SETTINGS, proxy=proxy), FACTS), [])
    assert set(kernel.routes) == {other, ANCHORS, ANCHORS6}
    mine.add_addresses([EXTERNAL])
    mine.remove_addresses([EXTERNAL])
    assert set(kernel.routes) == {other, ANCHORS, ANCHORS6}


def test_trouble_is_a_finding_until_it_is_over(kernel: FakeKernel) -> None:
    around = survey(SETTINGS, FACTS)
    kernel.other_routes = (Route(SINGLE, Table.LOCAL, RouteType.LOCAL, 2, "eth9"),)
    mine = routes(kernel, around)
    mine.ensure(around, [EXTERNAL])
    (finding,) = mine.findings()
    assert (finding.path, finding.reason) == ("192.0.2.1/32", Reason.ROUTE)
    assert SINGLE not in kernel.routes
    kernel.other_routes = ()
    mine.ensure(around, [EXTERNAL])
    assert mine.findings() == ()
    assert SINGLE in kernel.routes


def test_trouble_goes_with_the_wish(kernel: FakeKernel) -> None:
    around = survey(SETTINGS, FACTS)
    kernel.other_routes = (Route(SINGLE, Table.LOCAL, RouteType.LOCAL, 2, "eth9"),)
    mine = routes(kernel, around)
    mine.ensure(around, [EXTERNAL])
    mine.remove_addresses([EXTERNAL])
    assert mine.findings() == ()
    mine.ensure(around, [EXTERNAL])
    mine.ensure(around, [])
    assert mine.findings() == ()
