"""The cases that need IPVS: every peer on a machine of its own, one after the other, same records.

IPVS keeps the virtual servers of all network namespaces in one table of 256 chains, so each peer's
are removed before the next begins.
"""

from __future__ import annotations

import time

import msgspec

from tests.bench import datapath, edgeproxy, engine, turns
from tests.bench.book import CAP, Book
from tests.bench.load import Load, frontend, spare
from tests.bench.peers import PEERS, Edgeproxy, Peer
from tests.bench.probe import Capped, Probe
from tests.lab.etcd import Etcd
from tests.lab.namespace import Host
from tests.lab.topology import Topology


class Extent(msgspec.Struct, frozen=True):
    """How much to measure.

    large: endpoints of a case with one service, 0 for none. data_path: whether to measure it.
    changes: samples of one change of edgeproxy. patience: seconds after which a peer's changes
    end, whatever the number of samples. idle: seconds of looking at a daemon with nothing to do.
    """

    sizes: tuple[int, ...]
    endpoints: int
    peers: tuple[str, ...]
    changes: int
    burst: int
    idle: float
    large: int = 0
    data_path: bool = True
    patience: float = 60.0


def run(extent: Extent, book: Book) -> None:
    """All cases of all sizes."""
    _warm_up()
    loads = [Load(services, extent.endpoints) for services in extent.sizes]
    for load in [*loads, *([Load(1, extent.large)] if extent.large else [])]:
        with Topology(hosts=len(extent.peers) + 1, backends=0) as net, Etcd(net.store) as etcd:
            print(f"--- {load}: the engine in one process", flush=True)
            engine.run(net.hosts[0], load, book)
            _empty(net.hosts[0])
            for host, name in zip(net.hosts[1:], extent.peers, strict=True):
                print(f"--- {load}: {name}", flush=True)
                _peer(host, name, etcd, load, extent, book)
                _empty(host)
    if "edgeproxy" in extent.peers and len(loads) > 1:
        turns.run(loads[0], loads[-1], extent.changes, book)
    if extent.data_path:
        print("--- the data path", flush=True)
        datapath.run(book)


def _warm_up() -> None:
    """Have the kernel load every module, and Python and nft their files, before anything is measured."""
    with Topology(hosts=1, backends=0) as net:
        engine.run(net.hosts[0], Load(1, 1), Book(silent=True))
        net.hosts[0].run(["keepalived", "--version"])


def _peer(host: Host, name: str, etcd: Etcd, load: Load, extent: Extent, book: Book) -> None:
    peer = PEERS[name](host, etcd)
    with Probe(host) as probe:
        try:
            peer.prepare(load)
            with book.timed("start, kernel empty", name, load):
                peer.start()
                probe.wait_complete(load, CAP)
            if isinstance(peer, Edgeproxy):
                edgeproxy.wait_ready(peer)
            peer.settle()
            probe.verify(load)
            added = _add_reals(peer, name, probe, load, extent, book)
            if isinstance(peer, Edgeproxy):
                edgeproxy.run(peer, probe, load, added, extent.burst, extent.idle, book)
        except Capped:
            print(f"{name} is left: it does not get further within {CAP:g} s", flush=True)
        finally:
            peer.stop()


def _add_reals(peer: Peer, name: str, probe: Probe, load: Load, extent: Extent, book: Book) -> list[int]:
    """One endpoint added, again and again until patience ends; the services that got the k-th spare."""
    services: list[int] = []
    samples: list[float] = []
    returned: list[float] = []
    end = time.monotonic() + extent.patience
    for k in range(extent.changes):
        service, address = load.services * k // extent.changes, spare(k)
        action = peer.adding(service, address)
        began = time.perf_counter()
        action()
        returned.append(time.perf_counter() - began)
        probe.wait_weight(frontend(service), address, 1, CAP)
        samples.append(time.perf_counter() - began)
        services.append(service)
        peer.settle()
        if time.monotonic() > end:
            break
    book.add("one endpoint added", name, load, "s", samples)
    book.add("one endpoint added: accepted", name, load, "s", returned)
    return services


def _empty(host: Host) -> None:
    host.run(["ipvsadm", "-C"], timeout=600)
