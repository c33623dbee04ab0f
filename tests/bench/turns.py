"""Is a change as fast among many services as among few? Both measured in one kernel, in turns."""

from __future__ import annotations

import contextlib
import time

from tests.bench import edgeproxy
from tests.bench.book import CAP, Book
from tests.bench.load import Load, frontend, spare
from tests.bench.peers import Edgeproxy
from tests.bench.probe import Probe
from tests.lab.etcd import Etcd
from tests.lab.topology import Topology

TURNS = 3
CASE = "one endpoint added, in turns"


def run(small: Load, large: Load, changes: int, book: Book) -> None:
    """Three turns of each, on hosts of their own with stores of their own; put to visible in the kernel."""
    print(f"--- {small} and {large} in turns", flush=True)
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(Topology(hosts=2, backends=0))
        sides: list[tuple[Load, Edgeproxy, Probe, list[float]]] = []
        for host, port, load in zip(net.hosts, (2379, 2389), (small, large), strict=True):
            peer = Edgeproxy(host, stack.enter_context(Etcd(net.store, port)))
            stack.callback(host.run, ["ipvsadm", "-C"], timeout=600)
            stack.callback(peer.stop)
            probe = stack.enter_context(Probe(host))
            peer.prepare(load)
            peer.start()
            edgeproxy.wait_ready(peer)
            sides.append((load, peer, probe, []))
        for turn in range(TURNS):
            for load, peer, probe, samples in sides:
                numbers = range(turn * changes, (turn + 1) * changes)
                samples += [_change(peer, probe, load, number, TURNS * changes) for number in numbers]
    for load, _, _, samples in sides:
        book.add(CASE, edgeproxy.NAME, load, "s", samples)


def _change(peer: Edgeproxy, probe: Probe, load: Load, number: int, count: int) -> float:
    service, address = load.services * number // count, spare(number)
    action = peer.adding(service, address)
    began = time.perf_counter()
    action()
    probe.wait_weight(frontend(service), address, 1, CAP)
    took = time.perf_counter() - began
    peer.settle()
    return took
