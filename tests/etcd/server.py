"""Real etcd members as child processes, and what can be done to them.

Every process is ended by the handle that started it. Data lives in the folder given, best on a
tmpfs: etcd syncs its log at every write.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgeproxy.etcd.client import Connection
from edgeproxy.etcd.endpoint import parse_endpoint
from edgeproxy.etcd.errors import Refused, StoreError
from edgeproxy.etcd.settings import EtcdSettings, Timing

START_DEADLINE = 30.0


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now; all are held until all are known."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


async def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition; fails the test with `what` at the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.01)


@dataclass
class Tls:
    """Files for a TLS server; `client_ca` makes it ask for client certificates."""

    ca: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path
    mutual: bool


@dataclass
class EtcdServer:
    """One member. `flags` are added to its command line; change them while it is down."""

    folder: Path
    name: str = "m0"
    flags: list[str] = field(default_factory=list)
    tls: Tls | None = None
    login: tuple[str, str] | None = None
    client_port: int = 0
    peer_port: int = 0
    cluster: str = ""
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.client_port, self.peer_port = free_ports(2)
        self.cluster = f"{self.name}={self.peer_url}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def data(self) -> Path:
        return self.folder / f"{self.name}.data"

    def settings(self, **changes: object) -> EtcdSettings:
        """Settings of a client that may do everything here."""
        values: dict[str, object] = {"endpoints": (self.url,)}
        if self.login:
            values |= {"username": self.login[0], "password": self.login[1]}
        if self.tls:
            values |= {"ca_file": self.tls.ca}
            values |= {"cert_file": self.tls.client_certificate, "key_file": self.tls.client_key}
        return EtcdSettings(**(values | changes))  # type: ignore[arg-type]

    def start(self) -> None:
        """Start it; `ready` tells when it serves."""
        assert self.process is None, f"{self.name} runs already"
        command = ["etcd", "--name", self.name, "--data-dir", str(self.data)]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        command += ["--initial-cluster", self.cluster, "--log-level", "warn", "--logger", "zap"]
        command += ["--heartbeat-interval", "100", "--election-timeout", "1000", *self.flags]
        if self.tls:
            command += ["--cert-file", str(self.tls.certificate), "--key-file", str(self.tls.key)]
            if self.tls.mutual:
                command += ["--client-cert-auth", "--trusted-ca-file", str(self.tls.ca)]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    async def ready(self) -> None:
        """Wait until a linearizable read is answered, be it with a refusal."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_DEADLINE
        while True:
            connection = self.connection()
            try:
                await connection.login()
                await connection.get(b"/")
                return
            except Refused:
                return
            except StoreError as error:
                if loop.time() > deadline:
                    raise AssertionError(f"etcd {self.name} did not start: {error}") from error
                await asyncio.sleep(0.05)
            finally:
                await connection.close()

    def connection(self, **changes: object) -> Connection:
        """A client of its own, for writing and for looking."""
        settings = self.settings(**changes)
        return Connection(parse_endpoint(settings.endpoints[0]), settings, Timing())

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it by signal and reap it."""
        if self.process is None:
            return
        self.process.send_signal(how)
        if how is not signal.SIGKILL:
            self.process.send_signal(signal.SIGCONT)
        self.process.wait(timeout=20)
        self.process = None

    def stop(self) -> None:
        """SIGSTOP: the process hangs, its kernel still answers TCP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, what: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, what)

    def wipe(self) -> None:
        """Lose the data directory; the member must be down."""
        assert self.process is None
        shutil.rmtree(self.data)

    def save(self, path: Path) -> None:
        """Write a snapshot of the running member to `path`."""
        self.etcdctl("snapshot", "save", str(path))

    def restore(self, path: Path) -> None:
        """Start over from a snapshot, with the same name, peer URL and cluster token."""
        self.wipe()
        self.etcdctl(
            "snapshot",
            "restore",
            str(path),
            *("--data-dir", str(self.data), "--name", self.name, "--initial-cluster", self.cluster),
            *("--initial-advertise-peer-urls", self.peer_url),
        )

    def etcdctl(self, *arguments: str) -> str:
        """Run etcdctl against this member; its standard output."""
        command = ["etcdctl", "--endpoints", self.url]
        if self.tls:
            command += ["--cacert", str(self.tls.ca)]
            command += ["--cert", str(self.tls.client_certificate), "--key", str(self.tls.client_key)]
        if self.login:
            command += ["--user", ":".join(self.login)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"etcdctl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def truth(self, prefix: str = "/services/") -> dict[bytes, bytes]:
        """What the member holds below the prefix, read by etcdctl and not by our client."""
        answer = json.loads(self.etcdctl("get", "--prefix", prefix, "--write-out", "json"))
        return {b64decode(kv["key"]): b64decode(kv.get("value", "")) for kv in answer.get("kvs", [])}

    def enable_auth(self) -> None:
        """root/secret may do all; reader/reading reads /services/; stranger/strange reads nothing."""
        self.etcdctl("user", "add", "root:secret")
        self.etcdctl("user", "grant-role", "root", "root")
        self.etcdctl("role", "add", "reader")
        self.etcdctl("role", "grant-permission", "reader", "--prefix=true", "read", "/services/")
        self.etcdctl("user", "add", "reader:reading")
        self.etcdctl("user", "grant-role", "reader", "reader")
        self.etcdctl("user", "add", "stranger:strange")
        self.etcdctl("auth", "enable")
        self.login = ("root", "secret")


def members(folder: Path, count: int, flags: list[str]) -> list[EtcdServer]:
    """Members of one cluster, not started."""
    servers = [EtcdServer(folder, name=f"m{number}", flags=flags) for number in range(count)]
    cluster = ",".join(server.cluster for server in servers)
    for server in servers:
        server.cluster = cluster
    return servers
