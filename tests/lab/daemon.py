"""edgeproxy itself on a machine of a topology: the real command in a process of its own."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.etcd import Etcd
from tests.lab.namespace import Host
from tests.lab.wait import until

READY_SECONDS = 300.0
SETTLE_SECONDS = 60.0
HEALTH_PORT = 10256
Sections = Mapping[str, Mapping[str, object]]


class Daemon:
    """`edgeproxy run` on a proxy host.

    settings: sections of the configuration beside what the test needs anyway.
    """

    def __init__(self, host: Host, etcd: Etcd, settings: Sections | None = None) -> None:
        self.host = host
        self.etcd = etcd
        self.directory = Path(tempfile.mkdtemp(prefix=f"edgeproxy-{host.name}-"))
        self.configuration = self.directory / "edgeproxy.toml"
        self.log = self.directory / "log"
        self.process: subprocess.Popen[str] | None = None
        self.configure(settings or {})

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._tell()
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._tell()
        self.close()

    def _tell(self) -> None:
        print(f"--- log of edgeproxy on {self.host.name}:\n{self.output()[-6000:]}")

    def configure(self, settings: Sections) -> None:
        """Writes the configuration anew; a running daemon reads it on `reload`."""
        sections: dict[str, dict[str, object]] = {
            "etcd": {"endpoints": [self.etcd.endpoint]},
            "node": {"name": self.host.name},
            "state": {"dir": str(self.directory / "state")},
        }
        for name, keys in settings.items():
            sections.setdefault(name, {}).update(keys)
        lines = []
        for name, keys in sections.items():
            lines.append(f"[{name}]")
            # TOML and JSON write strings, numbers, booleans and lists of them alike.
            lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        self.configuration.write_text("\n".join(lines) + "\n")

    def start(self, *, wait: bool = True) -> None:
        """Starts it; by default waits until its first complete state is applied."""
        argv = [sys.executable, "-m", "edgeproxy", "run", "--config", str(self.configuration)]
        with self.log.open("ab") as log:
            self.process = self.host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            until(self.is_ready, READY_SECONDS, f"edgeproxy on {self.host.name} is ready", 0.1)

    def is_ready(self) -> bool:
        """Whether /readyz says so.

        Raises:
            AssertionError: it has ended.
        """
        assert self.process is not None
        assert self.process.poll() is None, (
            f"edgeproxy ended with {self.process.returncode}:\n{self.output()}"
        )
        return self.get("/readyz")[0] == http.client.OK

    def get(self, path: str, port: int = HEALTH_PORT) -> tuple[int, str]:
        """GET on the machine's loopback: status (0 if nobody listens) and body."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            with self.host.inside():
                connection.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The value of a metric line such as `edgeproxy_sync_failures_total`; 0 where there is none."""
        for line in self.get("/metrics", 10249)[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and reaps it."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.process = None
        return code

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs another `edgeproxy` command with the same configuration; costs a process start."""
        argv = [sys.executable, "-m", "edgeproxy", *words, "--config", str(self.configuration)]
        return self.host.run(argv, check=check)

    def status(self) -> dict[str, Any]:
        """The answer of `edgeproxy status --json`, asked in this process: no interpreter has to start."""
        import msgspec

        from edgeproxy.control import ask
        from edgeproxy.status import Status

        found: dict[str, Any] = msgspec.to_builtins(ask(self.directory / "state", "status", Status, 60))
        return found

    def settled(self, revision: int = 0) -> None:
        """Waits until everything up to a revision (default: the store's newest) is in the kernel."""
        # The store's revision counts keys outside the prefix, too; only writes below it arrive here.
        wanted = revision or self.etcd.revision()
        until(
            lambda: self.status()["revision"] >= wanted,
            SETTLE_SECONDS,
            f"edgeproxy on {self.host.name} has applied revision {wanted}",
            0.05,
        )

    def put(self, records: Mapping[str, str | Mapping[str, object] | None]) -> None:
        """Writes records (None deletes) in one transaction and waits until they are in force."""
        self.settled(self.etcd.write(records))

    def output(self) -> str:
        """What it logged."""
        return self.log.read_text() if self.log.exists() else ""

    def reload(self) -> None:
        """SIGHUP, and waits until it says what became of it."""
        before = self.output().count("onfiguration ")
        self.signal(signal.SIGHUP)
        until(lambda: self.output().count("onfiguration ") > before, SETTLE_SECONDS, "the reload is done")

    def close(self) -> None:
        """Ends it and removes its directory; the namespace keeps what the kernel holds."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def ipvs(host: Host) -> Sequence[str]:
    """`ipvsadm -Sn` of a machine, sorted: its virtual and real servers as lines."""
    return sorted(host.run(["ipvsadm", "-Sn"]).stdout.splitlines())
