"""One host in memory: records, a fake kernel, and reconcilers that come and go."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec.structs import astuple

from edgeproxy.address import Address, Network, parse, text
from edgeproxy.catalog import Catalog
from edgeproxy.coexistence import Coexistence
from edgeproxy.etcd.changes import Event, KeyValue
from edgeproxy.etcd.ledger import LedgerImage
from edgeproxy.frame import FrameKeeper
from edgeproxy.kept import Kept
from edgeproxy.kernel.nft_sets import describe
from edgeproxy.kernel.routes_codec import HostAddress, Route, RouteType, Table
from edgeproxy.model import Element, Frontend, SetName
from edgeproxy.ownership import OwnershipLog
from edgeproxy.reconcile import Reconciler
from edgeproxy.settings import Node, Proxy, Settings
from edgeproxy.surroundings import HostFacts, survey
from edgeproxy.tuning import Tuning
from tests.fake_kernel import FakeKernel

PREFIX = "/services/"
SCOPE = "boot 1 netns 1"
BUILD = "the tests'"
DRAINS = (SetName.DRAINS4, SetName.DRAINS6)
HOST4, HOST6 = "10.1.0.11", "fd00:1::11"
FACTS = HostFacts(
    addresses=(
        HostAddress(parse(HOST4), 24, "eth0"),
        HostAddress(parse(HOST6), 64, "eth0"),
    ),
    routes=(
        Route(Network(Address(bytes(4)), 0), Table.MAIN, RouteType.UNICAST, 3, "eth0", parse("10.1.0.2")),
    ),
)
SETTINGS = Settings(node=Node(name="host0", zone="here"))
Record = Mapping[str, object] | str


class NoNeighbours(Coexistence):
    """A host without other software."""

    def look_at_rules(self, proxy: Proxy) -> bool:
        """There is none."""
        return True

    def look_at_sockets(self) -> None:
        """Nothing listens."""


class Site:
    """A host: what survives its daemon is the kernel and the state directory."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="edgeproxy-site-")
        self.directory = Path(self._home.name)
        self.settings = settings
        self.kernel = FakeKernel()
        self.kernel.addresses = FACTS.addresses
        self.kernel.other_routes = FACTS.routes
        self.records: dict[bytes, KeyValue] = {}
        self.revision = 1
        self.reconciler = self.start()

    def start(self) -> Reconciler:
        """A daemon that knows nothing yet."""
        wires = self.kernel.wires()
        self.reconciler = Reconciler(
            Catalog(PREFIX),
            survey(self.settings, FACTS),
            wires,
            OwnershipLog(self.directory, SCOPE),
            FrameKeeper(wires.nft, self.directory),
            self.kernel.clock,
            tuning=Tuning(lambda settings: ()),
            coexistence=NoNeighbours(),
        )
        return self.reconciler

    def copy(self) -> Site:
        """The same host with its records, before any daemon has looked at them."""
        other = Site(self.settings)
        other.kernel = copy.deepcopy(self.kernel)
        shutil.copytree(self.directory, other.directory, dirs_exist_ok=True)
        other.records, other.revision = dict(self.records), self.revision
        other.restart()
        return other

    def restart(self) -> Reconciler:
        """Another daemon, with the records that are there."""
        self.start()
        self.reconciler.load(self.records.values(), self.revision)
        return self.reconciler

    def keep(self) -> Kept | None:
        """What the daemon would write down for the next one."""
        return self.reconciler.keep(LedgerImage(self.revision, 7, {}, (0, b"")), BUILD)

    def recall(self, kept: Kept) -> Reconciler:
        """Another daemon, with what an earlier one kept and what was written since."""
        self.start()
        self.reconciler.recall(kept)
        since = kept.ledger.revision
        new = [Event(*record) for each in self.records.values() if (record := astuple(each))[3] > since]
        known = {entry.key for service in kept.catalog.services for entry in service.entries}
        known |= {service.version.key for service in kept.catalog.services if service.version}
        gone = {*known, *kept.catalog.bad, *kept.catalog.findings} - {key.decode() for key in self.records}
        deletes = [Event(key.encode(), None, 0, self.revision) for key in sorted(gone)]
        self.reconciler.apply([*new, *deletes], self.revision, gap=True)
        return self.reconciler

    def write(self, records: Mapping[str, Record | None]) -> list[Event]:
        """Change the store in one transaction, None deletes; a watch would tell of these events."""
        self.revision += 1
        events = []
        for name, record in records.items():
            key = f"{PREFIX}{name}".encode()
            known = self.records.pop(key, None)
            if record is None:
                if known:
                    events.append(Event(key, None, 0, self.revision))
                continue
            value = (record if isinstance(record, str) else json.dumps(record)).encode()
            created = known.create_revision if known else self.revision
            self.records[key] = KeyValue(key, value, created, self.revision)
            events.append(Event(key, value, created, self.revision))
        return events

    def put(self, records: Mapping[str, Record | None]) -> None:
        """Change the store, tell the daemon, and let it work."""
        self.reconciler.apply(self.write(records), self.revision)
        self.sync()

    def sync(self) -> None:
        """Let the daemon work until nothing is left."""
        for _ in range(5):
            finish(self.reconciler.sync())
            if not self.reconciler.pending:
                return
        raise AssertionError("the reconciler finds no end")

    def quiet(self) -> None:
        """Everything is in the kernel and every drain is over."""
        self.sync()
        self.kernel.pass_time(8 * 86400)
        finish(self.reconciler.settle())
        finish(self.reconciler.audit())
        self.sync()

    def reals(self, frontend: Frontend) -> dict[str, int]:
        """Weights in the kernel, by address."""
        held = self.kernel.reals[frontend]
        return {text(address): entry.weight for (address, _), entry in held.items()}

    def ours(self) -> set[Frontend]:
        """The virtual servers that a daemon starting now would take for ours."""
        register = {
            Frontend(*element.key)  # type: ignore[arg-type]  # as the register's key is
            for name in (SetName.FRONTENDS4, SetName.FRONTENDS6)
            for element, _ in (self.kernel.sets or {name: {}})[name].values()
        }
        logged = OwnershipLog(self.directory, SCOPE).read()
        anchors = self.settings.proxy.anchor_cidrs
        on_anchors = {f for f in self.kernel.servers if any(f.address in network for network in anchors)}
        return register | logged | on_anchors


def finish(steps: Iterator[None]) -> None:
    """Run work to its end."""
    for _ in steps:
        pass


def picture(kernel: FakeKernel) -> list[str]:
    """What the kernel holds, but for drains; anchors of external addresses by what they stand for."""
    elements = [
        held for name, each in (kernel.sets or {}).items() if name not in DRAINS for held, _ in each.values()
    ]
    names = {text(e.data): f"detour of {text(_address(e))}" for e in elements if e.data}
    lines = [f"element {element.set} {describe(element)}" for element in elements]
    for frontend, entry in kernel.servers.items():
        shown = f"{frontend.protocol.name} {names.get(text(frontend.address), text(frontend.address))} {frontend.port}"
        lines.append(f"server {shown} {entry.scheduler} {entry.flags} {entry.timeout}")
        lines += [f"real {shown} {real.real_server}" for real in kernel.reals[frontend].values()]
    lines += [f"route {network} {source!r}" for network, source in kernel.routes.items()]
    for anchor, name in names.items():
        lines = [line.replace(f": {anchor} (", f": {name} (") for line in lines]
    return sorted(lines)


def _address(element: Element) -> Address:
    address = element.key[0]
    assert isinstance(address, bytes)
    return address
