"""A real etcd for tests on a topology: on its `store` machine, or on loopback.

For faults of etcd itself (elections, TLS, compaction) see `tests/etcd/server.py`.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.namespace import Host
from tests.lab.wait import until

START_SECONDS = 90.0


class Etcd:
    """One member with an empty store. Writes go through its JSON gateway: no child process each.

    host: the machine it runs on, None for this one. port: there, for clients; the next one is for peers.
    """

    def __init__(self, host: Host | None = None, port: int = 2379) -> None:
        self.host = host
        self.directory = Path(tempfile.mkdtemp(prefix="edgeproxy-etcd-"))
        self.address = host.address4 if host else "127.0.0.1"
        self.port, self.peer_port = (port, port + 1) if host else _free_ports(2)
        self.process: subprocess.Popen[bytes] | None = None
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """For `[etcd] endpoints`."""
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        """Starts it (again, with the data it had) and waits until it serves."""
        peer = f"http://{self.address}:{self.peer_port}"
        argv = [
            *("etcd", "--name", "lab", "--data-dir", str(self.directory / "data"), "--log-level", "warn"),
            *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--logger", "zap"),
            *("--initial-cluster", f"lab={peer}", "--unsafe-no-fsync"),
            # The start waits for an election, although a single member needs nobody's vote.
            *("--heartbeat-interval", "50", "--election-timeout", "250"),
        ]
        with (self.directory / "log").open("ab") as log, self._inside():
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._serves, START_SECONDS, f"etcd serves (log: {self.directory}/log)")

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        return self.host.inside() if self.host else contextlib.nullcontext()

    def _serves(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"etcd ended: {(self.directory / 'log').read_text()}")
        try:
            self.revision()
        except (OSError, http.client.HTTPException, RuntimeError):
            return False
        return True

    def kill(self) -> None:
        """SIGKILL; the data stays. `start` brings it back."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM, and waits for its end."""
        self._end(signal.SIGTERM)

    def stop(self) -> None:
        """SIGSTOP: it hangs, connections stay."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None, "etcd is not running"
        self.process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None
        self._disconnect()

    def close(self) -> None:
        """Ends it and removes its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def put(self, key: str, value: str | bytes | Mapping[str, object]) -> int:
        """Writes one record; a mapping is written as JSON. Returns the revision."""
        return self.write({key: value})

    def delete(self, key: str) -> int:
        """Deletes one key. Returns the revision."""
        return _revision(self._post("kv/deleterange", {"key": _coded(key)}))

    def delete_prefix(self, prefix: str) -> int:
        """Deletes every key that starts so. Returns the revision."""
        request = {"key": _coded(prefix), "range_end": _coded(_after(prefix.encode()))}
        return _revision(self._post("kv/deleterange", request))

    def write(self, records: Mapping[str, str | bytes | Mapping[str, object] | None]) -> int:
        """Writes (or with None deletes) records in one transaction, at most 128. Returns the revision."""
        operations: list[dict[str, object]] = []
        for key, value in records.items():
            if value is None:
                operations.append({"request_delete_range": {"key": _coded(key)}})
                continue
            text = json.dumps(value) if isinstance(value, Mapping) else value
            operations.append({"request_put": {"key": _coded(key), "value": _coded(text)}})
        return _revision(self._post("kv/txn", {"success": operations}))

    def revision(self) -> int:
        """The store's current revision."""
        return _revision(self._post("kv/range", {"key": _coded("\0"), "count_only": True}))

    def compact(self, revision: int) -> None:
        """Forgets the history before that revision."""
        self._post("kv/compaction", {"revision": str(revision), "physical": True})

    def _post(self, method: str, request: object) -> dict[str, object]:
        if self._connection is None:
            # Connected by hand: the socket has to be made inside the namespace.
            self._connection = http.client.HTTPConnection(self.address, self.port, timeout=30)
            with self._inside():
                self._connection.sock = socket.create_connection((self.address, self.port), timeout=30)
            # http.client does so where it connects itself; without, each write waits 40 ms for an ACK.
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._connection.request("POST", f"/v3/{method}", json.dumps(request))
            response = self._connection.getresponse()
            body = response.read()
        except BaseException:
            self._disconnect()
            raise
        if response.status != http.client.OK:
            raise RuntimeError(f"etcd: {method}: {response.status} {body.decode(errors='replace')}")
        answer: dict[str, object] = json.loads(body)
        return answer

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


def _revision(answer: dict[str, object]) -> int:
    header = answer["header"]
    assert isinstance(header, dict)
    return int(header["revision"])


def _coded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def _after(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix` (whose last byte is below 0xff)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
