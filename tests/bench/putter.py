"""Single writes as a client of the store makes them, over gRPC, from a process in the store's namespace.

    python -m tests.bench.putter TARGET

Takes lines `KEY VALUE` (put) or `KEY` (delete) and answers each with a line when etcd has acknowledged it. The
JSON gateway that `tests.lab.etcd` writes through costs etcd three times as much; gRPC's own threads do
not follow a caller into a namespace, hence the process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import grpc
import msgspec

from edgeproxy.etcd import messages as wire
from tests.lab.etcd import Etcd


class Putter:
    """The other end: writes one record and waits for the acknowledgement."""

    def __init__(self, etcd: Etcd) -> None:
        assert etcd.host is not None
        argv = [sys.executable, "-m", "tests.bench.putter", f"{etcd.address}:{etcd.port}"]
        self._process = etcd.host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        # Connects; to delete what is not there makes no revision.
        self.delete("/nothing")

    def put(self, key: str, record: Mapping[str, object]) -> None:
        """Put a record."""
        self._tell(f"{key} {msgspec.json.encode(record).decode()}\n")

    def delete(self, key: str) -> None:
        """Delete a key."""
        self._tell(f"{key}\n")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n", "the putter has ended"


def main() -> None:
    channel = grpc.insecure_channel(sys.argv[1])
    put = channel.unary_unary(
        "/etcdserverpb.KV/Put",
        request_serializer=wire.PutRequest.SerializeToString,
        response_deserializer=wire.PutResponse.FromString,
    )
    delete = channel.unary_unary(
        "/etcdserverpb.KV/DeleteRange",
        request_serializer=wire.DeleteRangeRequest.SerializeToString,
        response_deserializer=wire.DeleteRangeResponse.FromString,
    )
    for line in sys.stdin:
        key, _, value = line.rstrip("\n").partition(" ")
        if value:
            put(wire.PutRequest(key=key.encode(), value=value.encode()), timeout=30)
        else:
            delete(wire.DeleteRangeRequest(key=key.encode()), timeout=30)
        print("done", flush=True)


if __name__ == "__main__":
    main()
