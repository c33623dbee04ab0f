"""The reconcile engine in one process on the real kernel: where the time of an apply goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgeproxy.address import parse_network
from edgeproxy.catalog import Catalog
from edgeproxy.collector import uncollected
from edgeproxy.execution import Executor
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.kernel.ipvs_socket import IpvsSocket
from edgeproxy.kernel.nft import Nft
from edgeproxy.mirror import Mirror
from edgeproxy.plan import Planner
from edgeproxy.reconcile import Reconciler
from edgeproxy.settings import Node, Proxy, Settings, State
from tests.bench.book import Book
from tests.bench.load import SERVICE_CIDR, Load
from tests.bench.stopwatch import Stopwatch
from tests.kernel.engine import Engine, History, finish
from tests.lab.namespace import Host

PARTS = (
    (Catalog, "replace", "decode"),
    (Engine, "recall", "read what was kept"),
    (Reconciler, "_compile", "compile"),
    (Planner, "reconcile", "plan"),
    (Executor, "run", "kernel apply"),
    (Ipvs, "apply_in_slices", "kernel apply: IPVS"),
    # In the kernel, beside which the next is made ready.
    (IpvsSocket, "tell", "kernel apply: IPVS, sending"),
    (Nft, "commit", "kernel apply: nft elements"),
    (Mirror, "read_servers", "read IPVS back"),
    (Mirror, "read_elements", "read nft back"),
)


def run(host: Host, load: Load, book: Book) -> None:
    """Cold apply; restart on the unchanged kernel, with what the first one kept and without; audit."""
    settings = Settings(
        node=Node(name=host.name),
        proxy=Proxy(service_cidrs=(parse_network(SERVICE_CIDR),)),
        state=State(dir=Path("/nonexistent")),
    )
    history = History()
    for key, value in load.records():
        history.put(key, value)
    with host.inside():
        engine = Engine(settings)
        try:
            _apply(engine, lambda: engine.load(history), load, "engine, kernel empty", book)
            file = engine.keep(history)
            engine.restart()
            _apply(engine, lambda: engine.recall(file), load, "engine, kernel right", book)
            engine.restart()
            _apply(engine, lambda: engine.load(history), load, "engine, kernel right, nothing kept", book)
            cpu, began = time.process_time(), time.perf_counter()
            finish(engine.reconciler.audit())
            book.add("audit, nothing changed", "engine", load, "s", [time.perf_counter() - began])
            book.add("audit, nothing changed: CPU", "engine", load, "s", [time.process_time() - cpu])
        finally:
            engine.close()


def _apply(engine: Engine, begin: Callable[[], None], load: Load, case: str, book: Book) -> None:
    with Stopwatch() as watch:
        for owner, method, name in PARTS:
            watch.watch(owner, method, name)
        began = time.perf_counter()
        # As the daemon does.
        with uncollected():
            begin()
            engine.sync()
        whole = time.perf_counter() - began
    book.add(case, "whole", load, "s", [whole])
    for name, seconds in watch.seconds.items():
        book.add(case, name, load, "s", [seconds])
    book.add(case, "write operations", load, "count", [engine.operations])
