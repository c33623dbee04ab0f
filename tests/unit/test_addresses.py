"""Elements of an address we serve: they follow the records, and stay while old virtual servers drain."""

from __future__ import annotations

import msgspec
import pytest

from edgeproxy.address import Address, parse, parse_network
from edgeproxy.booking import enter
from edgeproxy.books import Actual, Desired, Part, Target, companions, key_of
from edgeproxy.catalog import Catalog
from edgeproxy.compile import Host, compile_service
from edgeproxy.etcd.changes import KeyValue
from edgeproxy.kernel.ipvs_operations import AddReal
from edgeproxy.model import Element, Frontend, Protocol, RealServer, SetName, VirtualServer
from edgeproxy.plan import Held, Plan, Planner
from edgeproxy.selection import Node
from edgeproxy.settings import Proxy

EXTERNAL, OWN = parse("192.0.2.1"), parse("10.1.0.11")
PROXY = Proxy(service_cidrs=(parse_network("10.96.0.0/16"),))
SERVICE = b"""{"clusterIP": "%s", "externalIPs": ["192.0.2.1", "10.1.0.11", "2001:db8::1"],
  "ports": [{"name": "http", "port": 80}, {"name": "https", "port": 443}]}"""


def _host(*addresses: Address, answer_arp: bool = False) -> Host:
    return Host(
        Node("n", "", frozenset({OWN, *addresses})), msgspec.structs.replace(PROXY, answer_arp=answer_arp)
    )


def _elements(host: Host, cluster_ip: str = "10.96.0.10") -> dict[SetName, set[Address]]:
    catalog = Catalog("/services/")
    records = {"web": SERVICE % cluster_ip.encode(), "web/endpoints/a": b"10.1.1.2"}
    catalog.replace([KeyValue(f"/services/{k}".encode(), v, 1, 1) for k, v in records.items()], 1)
    entry = catalog.entry("web")
    assert entry is not None
    found: dict[SetName, set[Address]] = {}
    for element in compile_service(entry, (), host).elements:
        if isinstance(address := element.key[0], bytes):
            found.setdefault(element.set, set()).add(address)
    return found


def test_external_addresses_are_not_answered_for() -> None:
    found = _elements(_host())
    assert found[SetName.UNANSWERED] == {EXTERNAL}
    assert found[SetName.ADDRESSES4] == {EXTERNAL, parse("10.96.0.10")}


def test_a_cluster_ip_outside_every_service_cidr_is_not_answered_for() -> None:
    assert parse("172.20.0.1") in _elements(_host(), "172.20.0.1")[SetName.UNANSWERED]


def test_answer_arp_leaves_all_answers() -> None:
    assert SetName.UNANSWERED not in _elements(_host(answer_arp=True))


def test_the_hosts_own_address_is_answered_for() -> None:
    assert SetName.UNANSWERED not in _elements(_host(EXTERNAL))


class Books:
    """Desired and actual state of one frontend's address, and what a plan makes of them."""

    def __init__(self, address: Address, port: int = 80, weight: int = 0) -> None:
        self.frontend = Frontend(address, Protocol.TCP, port)
        self.desired, self.actual = Desired(), Actual()
        self.actual.set_server(VirtualServer(self.frontend, "wrr"))
        enter([AddReal(self.frontend, RealServer(parse("10.1.1.2"), 80, weight))], self.actual)
        for name, key in companions(self.frontend):
            self.actual.elements[name, key] = Element(name, key)  # type: ignore[arg-type]
        self.actual.routes.add(address)

    def plan(self, drain: float = 300) -> Plan:
        planner = Planner(self.desired, self.actual, drain, Held())
        return planner.reconcile(self.actual.everything(), {}, {})


@pytest.fixture(params=["192.0.2.1", "2001:db8::1"])
def books(request: pytest.FixtureRequest) -> Books:
    return Books(parse(request.param), weight=1)


def test_companions_stay_while_the_server_drains(books: Books) -> None:
    plan = books.plan()
    assert [drain.frontend for drain, _ in plan.add_drains] == [books.frontend]
    assert plan.remove_elements == []
    assert plan.remove_routes == []


def test_they_go_with_its_last_real_server(books: Books) -> None:
    plan = books.plan(drain=0)
    assert {key_of(element) for element in plan.remove_elements} == set(companions(books.frontend))
    assert plan.remove_routes == [books.frontend.address]


def test_they_go_while_the_service_stays_when_the_host_comes_to_own_the_address(books: Books) -> None:
    (name, key), *addresses = companions(books.frontend)
    target = Target(VirtualServer(books.frontend, "wrr"), (RealServer(parse("10.1.1.2"), 80),), 300)
    books.desired.put({"web": Part((target,), (Element(name, key),))})  # type: ignore[arg-type]
    plan = books.plan()
    assert plan.ipvs == []
    assert {key_of(element) for element in plan.remove_elements} == set(addresses)
    assert plan.remove_routes == [books.frontend.address]
