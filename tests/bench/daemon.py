"""The daemon natively, on an imaginary IPVS: what Python, etcd and nftables cost without emulation."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.book import CAP, Book
from tests.bench.load import (
    SERVICE_CIDR,
    Load,
    endpoint_key,
    endpoint_record,
    spare,
)
from tests.bench.peers import TRANSACTION, write_records
from tests.bench.processes import cpu_seconds, resident_mib
from tests.bench.putter import Putter
from tests.lab.daemon import Daemon
from tests.lab.etcd import Etcd
from tests.lab.topology import Topology
from tests.lab.wait import until

NAME = "daemon, imaginary IPVS"
TURNS = 3
_REST = 0.0005
_PAUSE = 0.02
"""Seconds between two changes: each finds the daemon waiting."""
_BURST_FROM = 5000


class ImaginaryDaemon(Daemon):
    """`edgeproxy run` with an IPVS that writes down when it was told something."""

    @property
    def told(self) -> Path:
        """The log of the imaginary IPVS."""
        return self.directory / "told"

    lasting = False
    """Whether its virtual servers outlive it; see `imaginary`."""
    took = 0.0
    """Seconds from its last start until it was ready."""

    def start(self, *, wait: bool = True) -> None:
        self.told.touch()
        argv = [sys.executable, "-m", "tests.bench.imaginary", str(self.told)]
        if self.lasting:
            argv += ["--lasting", str(self.directory)]
        argv += ["run", "--config", str(self.configuration)]
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = self.host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            until(self.is_ready, CAP, "the daemon is ready", 0.02)
            self.took = time.monotonic() - began

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid


class LastingDaemon(ImaginaryDaemon):
    """The same with an IPVS that outlives it: for starts, and nothing else."""

    lasting = True


@contextlib.contextmanager
def running(
    load: Load, kind: type[ImaginaryDaemon] = ImaginaryDaemon, **settings: object
) -> Iterator[tuple[ImaginaryDaemon, Etcd, Putter]]:
    """A ready daemon on a store of its own that holds the records; `settings`: `section_key=value`."""
    sections: dict[str, dict[str, object]] = {"proxy": {"service_cidrs": [SERVICE_CIDR]}}
    for name, value in settings.items():
        section, _, key = name.partition("_")
        sections.setdefault(section, {})[key] = value
    with Topology(hosts=1, backends=0) as net, Etcd(net.store) as etcd:
        write_records(etcd, load)
        with kind(net.hosts[0], etcd, sections) as daemon:
            yield daemon, etcd, Putter(etcd)


def run(small: Load, large: Load, changes: int, burst: int, idle: float, book: Book) -> None:
    """Single changes on two sizes in turn, a burst, idling, changes beside audits of the kernel and of the store."""
    with running(small) as few, running(large) as many:
        samples: dict[Load, list[float]] = {small: [], large: []}
        for turn in range(TURNS):
            for load, (daemon, _, putter) in ((small, few), (large, many)):
                numbers = range(turn * changes, (turn + 1) * changes)
                samples[load] += [_change(daemon, putter, load, k, TURNS * changes) for k in numbers]
        for load, found in samples.items():
            book.add("put to kernel, one endpoint", NAME, load, "s", found)
    for load in (small, large):
        _starts(load, book)
        with running(load) as (daemon, etcd, _):
            book.add("start to ready: CPU", NAME, load, "s", [cpu_seconds(daemon.pid)])
            _burst(daemon, etcd, load, burst, book)
            _idle(daemon, load, idle, book)
        with running(load, proxy_resync="1s") as (daemon, _, putter):
            found = [_change(daemon, putter, load, k, changes) for k in range(changes)]
            book.add("put to kernel, audit every second", NAME, load, "s", found)
        with running(load, etcd_audit="1s") as (daemon, _, putter):
            # From etcd's answer: it serves a list and a put one after the other, and that is not our time.
            found = [_change(daemon, putter, load, k, changes, from_answer=True) for k in range(changes)]
            book.add("answer to kernel, store audited", NAME, load, "s", found)


def _starts(load: Load, book: Book) -> None:
    """Starts on an empty kernel, and on one that is right."""
    cold, again = [], []
    for _ in range(TURNS):
        with running(load, LastingDaemon) as (daemon, _, _):
            cold.append(daemon.took)
            for _ in range(TURNS):
                daemon.terminate()
                size = daemon.told.stat().st_size
                daemon.start()
                again.append(daemon.took)
                assert daemon.told.stat().st_size == size, "a restart wrote to the imaginary kernel"
    book.add("start to ready", NAME, load, "s", cold)
    book.add("restart to ready, kernel right", NAME, load, "s", again)


def _change(
    daemon: ImaginaryDaemon, putter: Putter, load: Load, number: int, count: int, *, from_answer: bool = False
) -> float:
    """Seconds from the put, or from etcd's answer to it, to the moment the change is about to enter the kernel."""
    time.sleep(_PAUSE)
    size = daemon.told.stat().st_size
    key = endpoint_key(load.services * number // count, f"spare-{number}")
    began = time.monotonic()
    putter.put(key, endpoint_record(spare(number)))
    if from_answer:
        began = time.monotonic()
    until(lambda: daemon.told.stat().st_size > size, CAP, "the change is in the imaginary kernel", _REST)
    with daemon.told.open() as told:
        told.seek(size)
        return max(float(told.readline().split()[0]) - began, 0.0)


def _burst(daemon: ImaginaryDaemon, etcd: Etcd, load: Load, count: int, book: Book) -> None:
    daemon.settled()
    spares = [(number % load.services, spare(_BURST_FROM + number)) for number in range(count)]
    cpu, began = cpu_seconds(daemon.pid), time.perf_counter()
    for start in range(0, count, TRANSACTION):
        part = spares[start : start + TRANSACTION]
        etcd.write({endpoint_key(s, f"burst-{a}"): endpoint_record(a) for s, a in part})
    daemon.settled()
    case = f"burst of {count} endpoints"
    book.add(f"{case}: converged", NAME, load, "s", [time.perf_counter() - began])
    book.add(f"{case}: CPU", NAME, load, "s", [cpu_seconds(daemon.pid) - cpu])


def _idle(daemon: ImaginaryDaemon, load: Load, seconds: float, book: Book) -> None:
    book.add("memory, steady", NAME, load, "MiB", [resident_mib(daemon.pid)])
    book.add("memory, most ever", NAME, load, "MiB", [resident_mib(daemon.pid, "VmHWM")])
    if seconds:
        # Some time after a change it writes down what it knows: that is part of the change, not of idling.
        kept = daemon.directory / "state" / "kept"
        until(kept.exists, CAP, "the state is kept", 0.5)
        before = cpu_seconds(daemon.pid)
        time.sleep(seconds)
        used = cpu_seconds(daemon.pid) - before
        book.add(f"idle for {seconds:g} s: CPU", NAME, load, "% of a core", [100 * used / seconds])
