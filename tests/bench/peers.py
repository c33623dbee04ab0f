"""Peers: what edgeproxy is compared with, each a small adapter.

A peer lives on one machine of the topology. `prepare` is not measured (files, records in the store),
`start` is, up to the moment the probe sees everything; `adding` prepares one more real server
and answers the action that is measured. Add a class and its name in `PEERS` to compare another one.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from tests.bench.book import CAP
from tests.bench.load import (
    BACKEND_PORT,
    PORT,
    PREFIX,
    SERVICE_CIDR,
    Load,
    endpoint_key,
    endpoint_record,
    vip,
)
from tests.bench.processes import wait_quiet
from tests.bench.putter import Putter
from tests.lab.daemon import Daemon
from tests.lab.etcd import Etcd
from tests.lab.namespace import Host

Action = Callable[[], object]
TRANSACTION = 128
"""Operations in one write to etcd: its default limit."""


class Peer(Protocol):
    """One program that fills IPVS."""

    def prepare(self, load: Load) -> None:
        """Give it the records, in its own form."""

    def start(self) -> None:
        """Begin; may return before everything is in the kernel."""

    def adding(self, service: int, address: str) -> Action:
        """Prepare one more real server for a service; what is answered makes it so."""

    def settle(self) -> None:
        """Wait until it has done what it was told, so that the next change finds it waiting."""

    def stop(self) -> None:
        """End it and its files."""


class Ipvsadm:
    """`ipvsadm -R` from a file; one change is `ipvsadm -a`."""

    def __init__(self, host: Host, etcd: Etcd) -> None:
        self._host = host
        self._file = Path(tempfile.mkdtemp(prefix="bench-ipvsadm-")) / "rules"

    def prepare(self, load: Load) -> None:
        self._file.write_text("".join(_ipvsadm_lines(load)))

    def start(self) -> None:
        with self._file.open() as rules:
            self._host.popen(["ipvsadm", "-R"], stdin=rules)

    def adding(self, service: int, address: str) -> Action:
        server, real = f"{vip(service)}:{PORT}", f"{address}:{BACKEND_PORT}"
        return lambda: self._host.run(["ipvsadm", "-a", "-t", server, "-r", real, "-m", "-w", "1"])

    def settle(self) -> None:
        pass

    def stop(self) -> None:
        self._host.end_processes()
        shutil.rmtree(self._file.parent)


def _ipvsadm_lines(load: Load) -> Iterator[str]:
    for service in range(load.services):
        server = f"{vip(service)}:{PORT}"
        yield f"-A -t {server} -s wrr\n"
        yield from (f"-a -t {server} -r {b}:{BACKEND_PORT} -m -w 1\n" for b in load.backends(service))


class Keepalived:
    """keepalived without health checks; one change is a new configuration, already written, and SIGHUP."""

    def __init__(self, host: Host, etcd: Etcd) -> None:
        self._host = host
        self._directory = Path(tempfile.mkdtemp(prefix="bench-keepalived-"))
        self._file = self._directory / "keepalived.conf"
        self._process: subprocess.Popen[str] | None = None
        self._load = Load(0, 0)
        self._added: dict[int, list[str]] = {}

    def prepare(self, load: Load) -> None:
        self._load = load
        self._file.write_text("".join(self._lines()))

    def start(self) -> None:
        files = [f"--{kind}={self._directory / kind}" for kind in ("pid", "checkers_pid")]
        argv = ["keepalived", "--dont-fork", "--check", "--log-console", f"--use-file={self._file}", *files]
        with (self._directory / "log").open("wb") as log:
            self._process = self._host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def adding(self, service: int, address: str) -> Action:
        self._added.setdefault(service, []).append(address)
        self._file.write_text("".join(self._lines()))
        assert self._process is not None
        process = self._process
        return lambda: process.send_signal(signal.SIGHUP)

    def settle(self) -> None:
        # It goes on reading and comparing after the kernel has the new real server.
        assert self._process is not None
        wait_quiet(self._process.pid, CAP)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(600)
        shutil.rmtree(self._directory)

    def _lines(self) -> Iterator[str]:
        for service in range(self._load.services):
            yield f"virtual_server {vip(service)} {PORT} {{\n lvs_sched wrr\n lvs_method NAT\n protocol TCP\n"
            for backend in (*self._load.backends(service), *self._added.get(service, ())):
                yield f" real_server {backend} {BACKEND_PORT} {{\n  weight 1\n }}\n"
            yield "}\n"


class Edgeproxy:
    """The daemon, on an etcd that holds the records; one change is a put."""

    def __init__(self, host: Host, etcd: Etcd) -> None:
        settings = {"proxy": {"service_cidrs": [SERVICE_CIDR], "node_port_range": "20000-36999"}}
        self.etcd = etcd
        self.daemon = Daemon(host, etcd, settings)
        self.putter = Putter(etcd)

    def prepare(self, load: Load) -> None:
        write_records(self.etcd, load)

    def start(self) -> None:
        self.daemon.start(wait=False)

    def adding(self, service: int, address: str) -> Action:
        key, record = endpoint_key(service, f"spare-{address}"), endpoint_record(address)
        return lambda: self.putter.put(key, record)

    def settle(self) -> None:
        self.daemon.settled()

    def stop(self) -> None:
        self.putter.close()
        self.daemon.close()


def write_records(etcd: Etcd, load: Load) -> None:
    """Put the records into a store, in place of what it held."""
    etcd.delete_prefix(PREFIX)
    batch: dict[str, str | bytes | Mapping[str, object] | None] = {}
    for key, value in load.records():
        batch[key] = value
        if len(batch) == TRANSACTION:
            etcd.write(batch)
            batch.clear()
    if batch:
        etcd.write(batch)


PEERS: Mapping[str, Callable[[Host, Etcd], Peer]] = {
    "edgeproxy": Edgeproxy,
    "ipvsadm": Ipvsadm,
    "keepalived": Keepalived,
}
