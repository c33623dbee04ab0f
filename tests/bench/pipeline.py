"""From records to the bytes of netlink messages, without a kernel: decode, compile, plan, encode."""

from __future__ import annotations

from collections.abc import Iterable

from edgeproxy.address import parse_network
from edgeproxy.booking import enter
from edgeproxy.books import Actual, Desired, Touched, key_of
from edgeproxy.catalog import Catalog
from edgeproxy.compile import Host, compile_service
from edgeproxy.etcd.changes import Event, KeyValue
from edgeproxy.kernel import netlink
from edgeproxy.kernel.ipvs_operations import encode_all
from edgeproxy.kernel.ipvs_socket import LARGEST_BATCH
from edgeproxy.kernel.nft_codec import Command, changes
from edgeproxy.plan import Held, Plan, Planner
from edgeproxy.selection import Node
from edgeproxy.settings import Proxy
from tests.bench.load import PREFIX, SERVICE_CIDR, Load

_FAMILY = 30
"""A number of the generic netlink family; any will do, nobody reads the messages."""


def snapshot(load: Load) -> list[KeyValue]:
    """The records as the client hands them over."""
    return [
        KeyValue(key.encode(), value.encode(), number, number)
        for number, (key, value) in enumerate(load.records(), 2)
    ]


class Pipeline:
    """One host's books and the steps of a sync, each to be called and timed by itself."""

    def __init__(self) -> None:
        self.catalog = Catalog(PREFIX)
        self.desired = Desired()
        self.actual = Actual()
        self._host = Host(Node("host0"), Proxy(service_cidrs=(parse_network(SERVICE_CIDR),)))

    def decode(self, records: Iterable[KeyValue]) -> frozenset[str]:
        """A snapshot into the catalog; the services to compile."""
        return self.catalog.replace(records, 1)

    def compile(self, services: Iterable[str]) -> Touched:
        """Services into the book of desired state."""
        return self.desired.put(
            {
                name: compile_service(entry, self.catalog.lost(name), self._host)
                if (entry := self.catalog.entry(name))
                else None
                for name in sorted(services)
            }
        )

    def plan(self, touched: Touched) -> Plan:
        """What differs, as operations."""
        return Planner(self.desired, self.actual, 300.0, Held()).reconcile(touched, {}, {})

    def encode(self, plan: Plan) -> int:
        """Operations into datagrams, as the sockets send them; how many bytes."""
        size = 0
        for start in range(0, len(plan.ipvs), LARGEST_BATCH):
            part = plan.ipvs[start : start + LARGEST_BATCH]
            size += len(netlink.batch(_FAMILY, range(1, len(part) + 1), encode_all(part)))
        return size + sum(len(each.payload) for each in changes(Command.NEW_ELEMENTS, plan.add_elements, {}))

    def apply(self, event: Event) -> int:
        """One event, all the way to bytes."""
        plan = self.plan(self.compile(self.catalog.apply([event], event.mod_revision)))
        return self.encode(plan)

    def accept(self, plan: Plan) -> None:
        """Note a plan as done: the book of actual state holds it from here on."""
        enter(plan.ipvs, self.actual)
        self.actual.elements.update((key_of(element), element) for element in plan.add_elements)
