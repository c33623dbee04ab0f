"""The daemon with an IPVS that is only a dictionary, for figures on a kernel without ip_vs.

    python -m tests.bench.imaginary LOG [--lasting DIRECTORY] run --config FILE

Everything is real (etcd client, books, nftables, routes, codecs of IPVS) up to the IPVS socket. A request costs
its decoding here instead of the kernel's work; an answer is a datagram of the kernel's layout that
was made before, so reading back costs the daemon what it always costs. LOG gets a line for every
datagram of changes: the monotonic clock and how many.

With --lasting the virtual servers outlive the process, as the kernel's do: at its end it works out what it was
told, and leaves the kernel's listing of it (/proc/net/ip_vs) in DIRECTORY for the next one to read.
Only a start may be measured with it: nothing is there to be asked for again.
"""

from __future__ import annotations

import errno
import pickle
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from edgeproxy.kernel import ipvs, netlink
from edgeproxy.kernel import ipvs_codec as codec
from edgeproxy.kernel.ipvs_codec import Command, DestinationField, Field, ServiceField
from edgeproxy.kernel.ipvs_entries import AF_INET, DestinationEntry, VirtualServerEntry
from edgeproxy.kernel.ipvs_socket import Requests
from edgeproxy.kernel.netlink import Answer, Flag
from edgeproxy.model import Frontend

T = TypeVar("T")
_FAMILY, _SEQUENCE = 30, 1
LISTING, SERVERS = "ip_vs", "servers"
"""Files of an IPVS that lasts."""
_STATISTICS_BYTES = 160
"""About what the kernel's two STATS attributes occupy in a message."""


class ImaginarySocket:
    """Stands for `IpvsSocket`: virtual servers of the model, destinations without connections."""

    largest_batch = 1024
    log: Path
    lasting: Path | None = None

    def __init__(self) -> None:
        self._unsettled: list[bytes] = []
        self._servers: dict[Frontend, VirtualServerEntry] = {}
        self._reals: dict[Frontend, dict[tuple[bytes, int], DestinationEntry]] = {}
        self._datagrams: dict[Frontend, bytes] = {}
        self._payloads: dict[Frontend, bytes] = {}
        self._log = self.log.open("a")
        self._before: list[bytes] = []
        if self.lasting and (servers := self.lasting / SERVERS).exists():
            self._before = pickle.loads(servers.read_bytes())

    def close(self) -> None:
        """Leave what there is for the next process, if it is to last."""
        self._log.close()
        if self.lasting and self._unsettled:
            for payload in self._unsettled:
                self._change(payload)
            (self.lasting / LISTING).write_text("".join(self._listing()))
            (self.lasting / SERVERS).write_bytes(pickle.dumps([*self._payloads.values()]))

    def _listing(self) -> Iterator[str]:
        """As ip_vs_info_seq_show prints it; IPv4 only."""
        for frontend, server in self._servers.items():
            yield f"{frontend.protocol.name}  {_socket(frontend.address, frontend.port)} {server.scheduler} \n"
            for real in self._reals[frontend].values():
                yield f"  -> {_socket(real.address, real.port)}      Masq    {real.weight:<6} {0:<10} {0:<10}\n"

    def prepare(self, payloads: Sequence[bytes]) -> Requests:
        """What the real socket does with them before the kernel has them."""
        sequences = range(_SEQUENCE, _SEQUENCE + len(payloads))
        return Requests(_FAMILY, payloads, sequences, netlink.batch(_FAMILY, sequences, payloads))

    def tell(self, requests: Requests) -> list[tuple[int, Answer]]:
        """Take changes; every one succeeds."""
        arrived, payloads = time.monotonic(), requests.payloads
        if self.lasting:
            self._unsettled += payloads
        else:
            for payload in payloads:
                self._change(payload)
        self._log.write(f"{arrived} {len(payloads)}\n")
        self._log.flush()
        return []

    def _change(self, payload: bytes) -> None:
        entry = codec.decode_service(payload)
        frontend = entry.frontend
        assert frontend is not None
        self._datagrams.pop(frontend, None)
        match payload[0]:
            case Command.NEW_SERVICE | Command.SET_SERVICE:
                self._servers[frontend] = entry
                self._reals.setdefault(frontend, {})
                self._payloads[frontend] = _service(entry)
            case Command.DEL_SERVICE:
                del self._servers[frontend], self._reals[frontend], self._payloads[frontend]
            case Command.NEW_DEST | Command.SET_DEST:
                real = codec.decode_destination(payload, entry.family)
                self._reals[frontend][real.address, real.port] = real
            case Command.DEL_DEST:
                real = codec.decode_destination(payload, entry.family)
                del self._reals[frontend][real.address, real.port]

    def ask(self, payloads: Sequence[bytes]) -> list[tuple[bytes, Answer]]:
        """Single virtual servers."""
        found = []
        for payload in payloads:
            frontend = codec.decode_service(payload).frontend
            reply = self._payloads.get(frontend, b"") if frontend else b""
            found.append((reply, Answer(0 if reply else errno.ESRCH)))
        return found

    def dump(
        self,
        payload: bytes,
        doing: str,
        decode: Callable[[bytes], T],
        fast: Callable[[bytes, int, int], list[T] | None] | None = None,
    ) -> list[T]:
        """All virtual servers, or the destinations of one."""
        if payload[0] == Command.GET_SERVICE:
            return [decode(each) for each in (*self._before, *self._payloads.values())]
        frontend = codec.decode_service(payload).frontend
        assert frontend is not None
        assert fast is not None
        if not self._reals.get(frontend):
            return []
        datagram = self._datagrams.get(frontend)
        if datagram is None:
            datagram = b"".join(map(_message, self._reals[frontend].values()))
            self._datagrams[frontend] = datagram
        values = fast(datagram, _FAMILY, _SEQUENCE)
        assert values is not None, "the imaginary kernel writes another layout than the real one"
        return values


def _socket(address: bytes, port: int) -> str:
    return f"{address.hex().upper()}:{port:04X}"


def _service(entry: VirtualServerEntry) -> bytes:
    """The payload of a NEW_SERVICE as kernels write it; IPv4 only."""
    fields = (
        netlink.u16(ServiceField.AF, entry.family),
        netlink.u16(ServiceField.PROTOCOL, entry.protocol),
        netlink.attribute(ServiceField.ADDR, entry.address.ljust(16, b"\0")),
        netlink.be16(ServiceField.PORT, entry.port),
        netlink.string(ServiceField.SCHED_NAME, entry.scheduler),
        netlink.attribute(ServiceField.FLAGS, struct.pack("=II", entry.flags, 0xFFFFFFFF)),
        netlink.u32(ServiceField.TIMEOUT, entry.timeout),
        netlink.be32(ServiceField.NETMASK, entry.netmask),
        netlink.attribute(ServiceField.STATS, bytes(_STATISTICS_BYTES)),
    )
    return codec.request(Command.NEW_SERVICE, netlink.nested(Field.SERVICE, *fields))


def _message(real: DestinationEntry) -> bytes:
    """A NEW_DEST as kernels since 5.3 write it."""
    fields = (
        netlink.attribute(DestinationField.ADDR, real.address.ljust(16, b"\0")),
        netlink.be16(DestinationField.PORT, real.port),
        netlink.u32(DestinationField.FWD_METHOD, real.forwarding),
        netlink.u32(DestinationField.WEIGHT, real.weight),
        netlink.u8(DestinationField.TUN_TYPE, 0),
        netlink.be16(DestinationField.TUN_PORT, 0),
        netlink.u16(DestinationField.TUN_FLAGS, 0),
        netlink.u32(DestinationField.U_THRESH, 0),
        netlink.u32(DestinationField.L_THRESH, 0),
        netlink.u32(DestinationField.ACTIVE_CONNS, 0),
        netlink.u32(DestinationField.INACT_CONNS, 0),
        netlink.u32(DestinationField.PERSIST_CONNS, 0),
        netlink.u16(DestinationField.ADDR_FAMILY, AF_INET),
        netlink.attribute(DestinationField.STATS, bytes(_STATISTICS_BYTES)),
    )
    payload = codec.request(Command.NEW_DEST, netlink.nested(Field.DEST, *fields))
    return netlink.message(_FAMILY, Flag.MULTI, _SEQUENCE, payload)


def main() -> None:
    from edgeproxy.cli import main as command

    ImaginarySocket.log = Path(sys.argv.pop(1))
    listing = ipvs._LISTING
    if sys.argv[1] == "--lasting":
        _, directory = sys.argv.pop(1), Path(sys.argv.pop(1))
        ImaginarySocket.lasting, listing = directory, str(directory / LISTING)
    # Not with unittest.mock: importing it would be part of every start.
    for name, value in (("IpvsSocket", ImaginarySocket), ("_LISTING", listing)):
        setattr(ipvs, name, value)
    command()


if __name__ == "__main__":
    main()
