"""What is asked of the daemon only: every kind of change, a burst, a restart, idling, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from tests.bench.book import CAP, Book
from tests.bench.load import (
    BACKEND_PORT,
    Load,
    endpoint_key,
    endpoint_record,
    frontend,
    node_port_frontend,
    packed,
    service_key,
    service_record,
    spare,
)
from tests.bench.peers import TRANSACTION, Edgeproxy
from tests.bench.probe import Probe
from tests.bench.processes import cpu_seconds, resident_mib
from tests.lab.wait import until

NAME = "edgeproxy"
_FIRST_NODE_PORT = 21000
_SPARES = 2000
"""Spare endpoints from here on belong to this module, those below to `lab`."""
Sample = Callable[[], float]


def wait_ready(peer: Edgeproxy) -> None:
    """Wait until the daemon says that its first state is in the kernel."""
    until(peer.daemon.is_ready, CAP, "edgeproxy is ready", 0.05)


def run(
    peer: Edgeproxy, probe: Probe, load: Load, added: list[int], burst: int, idle: float, book: Book
) -> None:
    """All of it.

    added: the services that have one spare endpoint each, the k-th spare; it is changed and removed here.
    """
    book.add("memory, most so far", NAME, load, "MiB", [resident_mib(_pid(peer), "VmHWM")])
    for case, samples in _changes(peer, probe, load, added):
        book.add(case, NAME, load, "s", samples)
    if not _is_large(load):
        _burst(peer, probe, load, burst, book)
    _idle(peer, load, idle, book)
    _restart(peer, probe, load, book)


def _pid(peer: Edgeproxy) -> int:
    assert peer.daemon.process is not None
    return peer.daemon.process.pid


def _changes(
    peer: Edgeproxy, probe: Probe, load: Load, services: list[int]
) -> Iterator[tuple[str, list[float]]]:
    etcd, putter = peer.etcd, peer.putter

    def timed(write: Callable[[], object], wait: Callable[[], None]) -> float:
        began = time.perf_counter()
        write()
        wait()
        took = time.perf_counter() - began
        peer.settle()
        return took

    def weigh(k: int) -> float:
        key, address = endpoint_key(services[k], f"spare-{spare(k)}"), spare(k)
        return timed(
            lambda: putter.put(key, endpoint_record(address, 5)),
            lambda: probe.wait_weight(frontend(services[k]), address, 5, CAP),
        )

    def remove(k: int) -> float:
        key, address = endpoint_key(services[k], f"spare-{spare(k)}"), spare(k)
        return timed(
            lambda: putter.delete(key),
            lambda: probe.wait_weight(frontend(services[k]), address, None, CAP),
        )

    def add_service(k: int) -> float:
        number = load.services + k
        # One transaction, as a deployment would write it.
        records: Mapping[str, Mapping[str, object]] = {
            service_key(number): service_record(number),
            **{
                endpoint_key(number, f"e{n}"): endpoint_record(spare(k * 10 + n))
                for n in range(load.endpoints)
            },
        }
        return timed(
            lambda: etcd.write(records),
            lambda: probe.wait_server(frontend(number), load.endpoints, CAP),
        )

    def remove_service(k: int) -> float:
        number = load.services + k
        return timed(
            lambda: etcd.delete_prefix(service_key(number)),
            lambda: probe.wait_server(frontend(number), None, CAP),
        )

    def add_node_port(k: int) -> float:
        record = service_record(services[k], _FIRST_NODE_PORT + k)
        return timed(
            lambda: putter.put(service_key(services[k]), record),
            lambda: probe.wait_server(node_port_frontend(_FIRST_NODE_PORT + k), load.endpoints, CAP),
        )

    kinds: dict[str, Callable[[int], float]] = {
        "one endpoint re-weighted": weigh,
        "one endpoint removed": remove,
        "one node port added": add_node_port,
    }
    if not _is_large(load):
        kinds |= {"one service added": add_service, "one service removed": remove_service}
    for case, change in kinds.items():
        # A service gets one node port, however many samples the other kinds take.
        count = len(set(services)) if change is add_node_port else len(services)
        before = _within(peer)
        yield case, [change(k) for k in range(count)]
        events, seconds = (now - then for now, then in zip(_within(peer), before, strict=True))
        yield f"{case}: within the daemon", [seconds / events]


def _is_large(load: Load) -> bool:
    """Whether a service with its endpoints does not go in one transaction of the store."""
    return load.endpoints >= TRANSACTION


def _within(peer: Edgeproxy) -> tuple[float, float]:
    """How many changes the daemon has had, and the seconds from their receipt to the end of their sync."""
    name = "edgeproxy_event_to_kernel_seconds"
    return peer.daemon.metric(f"{name}_count"), peer.daemon.metric(f"{name}_sum")


def _burst(peer: Edgeproxy, probe: Probe, load: Load, count: int, book: Book) -> None:
    """Endpoints added one by one, each write as soon as etcd takes it; in transactions of the largest size."""
    if not count:
        return
    spares = [(number % load.services, spare(_SPARES + number)) for number in range(count)]
    cpu = cpu_seconds(_pid(peer))
    began = time.perf_counter()
    for start in range(0, count, TRANSACTION):
        part = spares[start : start + TRANSACTION]
        peer.etcd.write({endpoint_key(s, f"burst-{a}"): endpoint_record(a) for s, a in part})
    written = time.perf_counter() - began
    peer.daemon.settled()
    service, address = spares[-1]
    assert probe.weight(frontend(service), address) == 1, "settled, but the kernel lacks the last endpoint"
    case = f"burst of {count} endpoints"
    book.add(f"{case}: written", NAME, load, "s", [written])
    book.add(f"{case}: in the kernel", NAME, load, "s", [time.perf_counter() - began])
    book.add(f"{case}: CPU", NAME, load, "s", [cpu_seconds(_pid(peer)) - cpu])
    # Taken back, so that the next case finds the records as they were.
    for start in range(0, count, TRANSACTION):
        part = spares[start : start + TRANSACTION]
        peer.etcd.write({endpoint_key(s, f"burst-{a}"): None for s, a in part})
    peer.daemon.settled()


def _idle(peer: Edgeproxy, load: Load, seconds: float, book: Book) -> None:
    book.add("memory, steady", NAME, load, "MiB", [resident_mib(_pid(peer))])
    book.add("memory, most ever", NAME, load, "MiB", [resident_mib(_pid(peer), "VmHWM")])
    if not seconds:
        return
    before = cpu_seconds(_pid(peer))
    time.sleep(seconds)
    used = cpu_seconds(_pid(peer)) - before
    book.add(f"idle for {seconds:g} s: CPU", NAME, load, "%", [100 * used / seconds])


def _restart(peer: Edgeproxy, probe: Probe, load: Load, book: Book) -> None:
    """Stop it and start it on the kernel as it is; then the same without what it keeps on disk."""
    _start_again(peer, load, "restart, kernel right", book)
    _start_again(peer, load, "restart, kernel right, nothing kept", book, kept=False)
    first = next(load.backends(0))
    assert probe.weights(frontend(0)) is not None, f"after a restart {packed(first)!r}:{BACKEND_PORT} is gone"


def _start_again(peer: Edgeproxy, load: Load, case: str, book: Book, *, kept: bool = True) -> None:
    peer.daemon.terminate()
    if not kept:
        (peer.daemon.directory / "state" / "kept").unlink()
    with book.timed(case, NAME, load):
        peer.daemon.start(wait=False)
        wait_ready(peer)
    operations = sum(
        float(line.rpartition(" ")[2])
        for line in peer.daemon.get("/metrics", 10249)[1].splitlines()
        if line.startswith("edgeproxy_operations_total")
    )
    book.add(f"{case}: write operations", NAME, load, "count", [operations])
