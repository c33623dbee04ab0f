"""The engine without a daemon: a reconciler in a network namespace, and a store it can read back.

`picture` is what the kernel holds of everybody's IPVS and of our tables and routes, as sorted
lines: two hosts with equal pictures serve the same.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from edgeproxy.address import text
from edgeproxy.catalog import Catalog
from edgeproxy.etcd.changes import Cause, Event, KeyValue, Snapshot
from edgeproxy.etcd.ledger import Difference, Ledger, LedgerImage
from edgeproxy.execution import Wires
from edgeproxy.frame import FrameKeeper
from edgeproxy.hostfacts import read
from edgeproxy.kept import decode, encode
from edgeproxy.kernel.ipvs_operations import RemoveVirtual
from edgeproxy.kernel.nft_sets import SETS, describe
from edgeproxy.kernel.routes import DeleteRoute
from edgeproxy.kernel.ruleset import Frame
from edgeproxy.model import Element, SetName
from edgeproxy.ownership import NAME as OWNED
from edgeproxy.ownership import OwnershipLog
from edgeproxy.reconcile import Reconciler
from edgeproxy.settings import Settings
from edgeproxy.surroundings import survey
from tests.lab.daemon import ipvs
from tests.lab.namespace import Host, ip_batch

PREFIX = "/services/"
BUILD = "the tests'"
DETOURS = (SetName.DETOURS4, SetName.DETOURS6)
_numbers = itertools.count()


class History:
    """A store's records with every version they ever had."""

    def __init__(self) -> None:
        self.revision = 1
        self.current: dict[bytes, KeyValue] = {}
        self._past: dict[bytes, list[Event]] = {}

    def put(self, key: str, value: str) -> Event:
        """Writes a record."""
        self.revision += 1
        name = key.encode()
        known = self.current.get(name)
        created = known.create_revision if known else self.revision
        self.current[name] = KeyValue(name, value.encode(), created, self.revision)
        return self._note(Event(name, value.encode(), created, self.revision))

    def delete(self, key: str) -> Event | None:
        """Deletes a record; None if it was not there."""
        name = key.encode()
        if self.current.pop(name, None) is None:
            return None
        self.revision += 1
        return self._note(Event(name, None, 0, self.revision))

    def _note(self, event: Event) -> Event:
        self._past.setdefault(event.key, []).append(event)
        return event

    def value_before(self, key: bytes, revision: int) -> KeyValue | None:
        """What the key held just before a revision."""
        for event in reversed(self._past.get(key, [])):
            if event.mod_revision < revision:
                if event.value is None:
                    return None
                return KeyValue(key, event.value, event.create_revision, event.mod_revision)
        return None


class SteadyFrame(FrameKeeper):
    """Looks at the frame once: nobody else changes it here, and its fingerprint costs more than all else."""

    _loaded = False

    def ensure(self, frame: Frame) -> bool:
        if self._loaded:
            return False
        self._loaded = True
        return super().ensure(frame)


class Engine:
    """Reconcilers, one after the other, on the kernel of one namespace. The caller is inside it."""

    def __init__(self, settings: Settings) -> None:
        self.wires = Wires.open()
        self.directory = Path(tempfile.mkdtemp(prefix="edgeproxy-engine-"))
        self._settings = settings
        self._frame = SteadyFrame(self.wires.nft, self.directory)
        self.reconciler = self.restart()

    def close(self) -> None:
        """Closes the wires; the namespace keeps what it holds."""
        self.wires.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def restart(self) -> Reconciler:
        """Begins with a new reconciler that knows nothing."""
        self.reconciler = Reconciler(
            Catalog(PREFIX),
            survey(self._settings, read(self.wires.routes)),
            self.wires,
            OwnershipLog(self.directory, "the test's"),
            self._frame,
            time.monotonic,
        )
        return self.reconciler

    def load(self, history: History) -> None:
        """Hands the present records over as a snapshot."""
        self.reconciler.load(history.current.values(), history.revision)
        self.resolve(history)

    def keep(self, history: History) -> bytes:
        """What the reconciler would leave on disk for the next one."""
        ledger = Ledger()
        ledger.replace(Snapshot(history.revision, tuple(history.current.values()), Cause.START), cluster_id=1)
        kept = self.reconciler.keep(ledger.image(), BUILD)
        assert kept is not None, "not everything is in the kernel"
        return b"".join(encode(kept))

    def recall(self, content: bytes) -> LedgerImage:
        """Begins with what an earlier reconciler left; answers the ledger of the store that was in it."""
        kept = decode(content, BUILD, PREFIX)
        assert kept is not None, "what was kept is not believed"
        self.reconciler.recall(kept)
        return kept.ledger

    def resolve(self, history: History) -> None:
        """Reads bad records back to their last good version, as the daemon's loop does."""
        catalog = self.reconciler.catalog
        while bad := catalog.unresolved():
            older = history.value_before(bad[0].key, bad[0].mod_revision)
            self.reconciler.mark(catalog.supply(bad[0].key, older).changed)

    def go_on(self, content: bytes, history: History) -> None:
        """Begins with what an earlier reconciler left, and with what was written since: as after a restart."""
        difference = Difference(Ledger.of(self.recall(content)))
        difference.begin()
        difference.compare(history.current.values())
        batch = difference.batch(history.revision)
        self.reconciler.apply(batch.events, batch.revision, gap=batch.gap)
        self.resolve(history)

    def sync(self) -> None:
        """Syncs to the end."""
        finish(self.reconciler.sync())

    @property
    def operations(self) -> int:
        """How much was written to the kernel since the reconciler began."""
        return self.reconciler.executor.counts.total() + self.reconciler._routes.changes

    def empty(self) -> None:
        """Takes everything out of the kernel but the frame of our tables."""
        self.wires.ipvs.apply(
            [
                RemoveVirtual(state.server.frontend)
                for state in self.wires.ipvs.dump()
                if state.server.frontend is not None
            ]
        )
        if self.wires.nft.tables():
            self.wires.nft.commit([], [held.element for name in SETS for held in self.wires.nft.dump(name)])
        self.wires.routes.apply([DeleteRoute(route.network) for route in self.wires.routes.own()])
        (self.directory / OWNED).unlink(missing_ok=True)


def finish(steps: Iterator[None]) -> None:
    """Runs work of a reconciler to its end."""
    for _ in steps:
        pass


def picture(wires: Wires) -> list[str]:
    """What the kernel holds, in lines. Anchors of external addresses go by what they stand for."""
    elements = [held.element for name in SETS for held in wires.nft.dump(name)]
    lines = [f"element {element.set}: {describe(element)}" for element in elements]
    for state in wires.ipvs.dump():
        server = state.server
        frontend = server.frontend or f"fwmark {server.fwmark}"
        lines.append(
            f"server {frontend} {server.scheduler} flags {server.flags:#x} timeout {server.timeout} "
            f"netmask {server.netmask:#x} {server.persistence_engine}"
        )
        lines += [
            f"real of {frontend}: {text(real.address)} {real.port} weight {real.weight} {real.forwarding}"
            for real in state.destinations
        ]
    lines += [
        f"route {route.network} src {text(route.source or route.network.address)}"
        for route in wires.routes.own()
    ]
    return sorted(_with_names(line, _detours(elements)) for line in lines)


def ipvsadm_picture(host: Host, wires: Wires) -> list[str]:
    """IPVS as ipvsadm shows it; anchors of external addresses go by what they stand for."""
    elements = [held.element for name in DETOURS for held in wires.nft.dump(name)]
    return sorted(_with_names(line, _detours(elements)) for line in ipvs(host))


def _detours(elements: list[Element]) -> dict[str, str]:
    return {
        text(element.data): f"detour-{text(element.key[0])}"  # type: ignore[arg-type]  # an address
        for element in elements
        if element.set in DETOURS
    }


def _with_names(line: str, names: dict[str, str]) -> str:
    for address, name in names.items():
        for before in (f"/{address}:", f"/[{address}]:", f" {address}:", f" [{address}]:"):
            line = line.replace(before, f"{before[0]}{name}:")
        line = " ".join(name if word == address else word for word in line.split(" "))
    return line


class Site(Host):
    """A machine with two addresses and default routes, on a network without anybody else."""

    def __init__(self) -> None:
        super().__init__("host0", f"site{os.getpid()}-{next(_numbers)}", "10.1.0.11", "fd00:1::11")

    def __enter__(self) -> Self:
        ip_batch([f"netns add {self.namespace}"])
        self.ip(
            "link set lo up",
            "link add eth0 type dummy",
            "link set eth0 up",
            f"addr add {self.address4}/24 dev eth0",
            f"addr add {self.address6}/64 dev eth0 nodad",
            "route add default via 10.1.0.2",
            "route add default via fd00:1::2",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.end_processes()
        ip_batch([f"netns delete {self.namespace}"])


def fresh_picture(settings: Settings, records: Mapping[str, str]) -> list[str]:
    """What a host that starts from nothing holds for these records."""
    history = History()
    for key, value in records.items():
        history.put(key, value)
    with Site() as site, site.inside():
        engine = Engine(settings)
        try:
            engine.load(history)
            engine.sync()
            return picture(engine.wires)
        finally:
            engine.close()


def picture_of(host: Host) -> list[str]:
    """The picture of a machine."""
    with host.inside():
        wires = Wires.open()
        try:
            return picture(wires)
        finally:
            wires.close()
