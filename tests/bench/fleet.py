"""A fleet on one etcd, natively: 200 followers, 20 changes a second, direct and through `etcd grpc-proxy`."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.bench.book import Book
from tests.bench.load import endpoint_key
from tests.bench.processes import cpu_seconds
from tests.bench.watchers import END
from tests.lab.etcd import Etcd
from tests.lab.wait import until

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 4
RATE = 20.0


def run(followers: int, seconds: float, book: Book) -> None:
    """Both ways."""
    with Etcd() as etcd:
        _measure(etcd, etcd.endpoint, f"{followers} followers", seconds, followers, book)
        with _proxy(etcd) as (endpoint, pid):
            before = cpu_seconds(pid)
            name = f"{followers} followers, grpc-proxy"
            _measure(etcd, endpoint, name, seconds, followers, book)
            share = 100 * (cpu_seconds(pid) - before) / seconds
            book.add(f"{name}: CPU of the proxy", "etcd", "", "% of a core", [share])


def _measure(etcd: Etcd, endpoint: str, name: str, seconds: float, followers: int, book: Book) -> None:
    argv = [sys.executable, "-m", "tests.bench.watchers", endpoint, str(followers // PROCESSES)]
    fleet = [subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    assert etcd.process is not None
    try:
        for process in fleet:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "a process of the fleet did not start"
        before, began = cpu_seconds(etcd.process.pid), time.monotonic()
        for number in range(int(seconds * RATE)):
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))
            etcd.put(endpoint_key(0, f"e{number}"), str(time.monotonic()))
        used = cpu_seconds(etcd.process.pid) - before
        etcd.put(endpoint_key(0, "last"), END)
        delays = [
            delay for process in fleet for delay in msgspec.json.decode(process.communicate(timeout=60)[0])
        ]
    finally:
        for process in fleet:
            process.kill()
            process.wait()
    expected = followers // PROCESSES * PROCESSES * int(seconds * RATE)
    assert len(delays) == expected, f"{len(delays)} deliveries, expected {expected}"
    book.add(f"{name}: put to delivered", "edgeproxy", "", "s", delays)
    book.add(f"{name}: CPU of etcd", "etcd", "", "% of a core", [100 * used / seconds])


@contextlib.contextmanager
def _proxy(etcd: Etcd) -> Iterator[tuple[str, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv = ["etcd", "grpc-proxy", "start", f"--endpoints={etcd.endpoint}", f"--listen-addr={address}"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(address), 30, "the grpc-proxy listens")
        yield f"http://{address}", process.pid
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True
