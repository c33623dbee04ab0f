"""IPVS in the kernel: operations in, failures out; the whole state or a part of it read back.

How writing works is told in :mod:`edgeproxy.kernel.ipvs_writer`.

Reading. Netlink tells everything. It lists virtual servers in one dump, but destinations only per
virtual server, and a socket can have one dump under way: an IPVS dump that has anything to say is
never finished inside `send` (ip_vs_genl_dump_dests returns the length, so it is called again), the
next request in the datagram is refused with EBUSY. So it is one `send` and two `recv` per virtual
server, in which the kernel looks for it, and for the destination to go on with, from the start.

/proc/net/ip_vs tells less (:mod:`edgeproxy.kernel.ipvs_listing`), but of a page full of virtual
servers per `read`. At a start all of IPVS is read, so there the destinations come from the file
(:meth:`Ipvs.read_in_slices`); whatever has to be known in full, or of few virtual servers, is
asked of netlink.

Errors: :class:`NoIpvsError` if the kernel has no IPVS; those of :mod:`edgeproxy.kernel.netlink`.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from edgeproxy.address import Address
from edgeproxy.kernel import ipvs_codec as codec
from edgeproxy.kernel import ipvs_layout as layout
from edgeproxy.kernel.ipvs_codec import Command
from edgeproxy.kernel.ipvs_entries import (
    DestinationEntry,
    Information,
    Timeouts,
    VirtualServerEntry,
    VirtualServerState,
    Weights,
)
from edgeproxy.kernel.ipvs_listing import Listed, Listing
from edgeproxy.kernel.ipvs_operations import Failure, Operation
from edgeproxy.kernel.ipvs_socket import LARGEST_BATCH, IpvsSocket
from edgeproxy.kernel.ipvs_writer import SLICE_SECONDS, Writer
from edgeproxy.kernel.netlink import RefusedError
from edgeproxy.kernel.netlink_socket import Closing
from edgeproxy.model import Frontend

Weighed = tuple[VirtualServerEntry, Weights]
"""A virtual server and the weights of its destinations."""

# Of this thread; /proc/net is that of the process's first thread.
_LISTING = "/proc/thread-self/net/ip_vs"
# The kernel gives at most a page at a time, more only where a virtual server alone needs more.
_PIECE = 64 << 10


class Ipvs(Closing):
    """IPVS of the network namespace in which this is made.

    Raises:
        NoIpvsError: the kernel has no IPVS.
    """

    def __init__(self) -> None:
        self._socket = IpvsSocket()
        self._listing = _open_listing()

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        self._socket.close()
        if self._listing is not None:
            self._listing.close()

    # -- writing -------------------------------------------------------------------------------

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Do all operations in order; what failed, [] if all is as asked for.

        Raises:
            RefusedError: EPERM, nothing of it can be done (CAP_NET_ADMIN is missing).
            NoIpvsError: the module was unloaded meanwhile.
        """
        return [failed for part in self.apply_in_slices(operations) for failed in part]

    def apply_in_slices(
        self, operations: Sequence[Operation], slice_size: int = LARGEST_BATCH
    ) -> Iterator[list[Failure]]:
        """As :meth:`apply`, but yields the failures of each slice after it is in the kernel.

        A slice is at most `slice_size` operations, fewer while the kernel is slow: it aims at
        :data:`SLICE_SECONDS`. A run that is left before its end has done whole slices only; of the
        last, what met an entry already there may not have edited it yet.
        """
        return Writer(self._socket, slice_size).run(operations)

    # -- reading -------------------------------------------------------------------------------

    def dump(self, *, statistics: bool = False) -> list[VirtualServerState]:
        """All virtual servers of this namespace with their destinations, anyone's, everything of them.

        Some may be missing, or there twice, if virtual servers of any namespace are made or removed
        meanwhile: to go on after a datagram the kernel counts those of all (ip_vs_genl_dump_services).
        """
        return [
            VirtualServerState(server, self._destinations(server, statistics=statistics))
            for server in self._virtual_servers(statistics=statistics)
        ]

    def read_in_slices(self) -> Iterator[list[Weighed]]:
        """All virtual servers with the weights of their destinations, in a third of the time of :meth:`dump`.

        Yields every :data:`SLICE_SECONDS` what was read since. Of masqueraded destinations it does
        not see thresholds and a forwarding method no tool sets; :meth:`dump_frontends` does, so an
        audit finds within its cycle what was set by hand.

        It is no snapshot: what changes meanwhile may be seen in its old or in its new state. What netlink
        misses then (:meth:`dump`) is found in the listing; if both miss it, a writer finds out, for
        every operation is safe to repeat.
        """
        began = time.monotonic()
        done: list[Weighed] = []
        for part in self._weighed():
            done += part
            if time.monotonic() - began > SLICE_SECONDS:
                yield done
                began, done = time.monotonic(), []
        yield done

    def dump_frontend(self, frontend: Frontend, *, statistics: bool = False) -> VirtualServerState | None:
        """One virtual server with its destinations, None if there is none at this frontend."""
        found = self.dump_frontends((frontend,), statistics=statistics)
        return found.get(frontend)

    def dump_frontends(
        self, frontends: Iterable[Frontend], *, statistics: bool = False
    ) -> dict[Frontend, VirtualServerState]:
        """The virtual servers of some frontends; frontends that are none are left out."""
        return {
            frontend: VirtualServerState(server, self._destinations(server, statistics=statistics))
            for frontend, server in self._named(list(frontends), statistics=statistics).items()
        }

    def connections(self, frontend: Frontend) -> dict[tuple[Address, int], tuple[int, int]]:
        """Active and inactive connections of each destination (address, port) of a frontend.

        Active: established. Inactive: everything else the kernel still has an entry for, which
        after TCP's end is 2 minutes by default. {} if there is no such virtual server.
        """
        state = self.dump_frontend(frontend)
        if state is None:
            return {}
        return {(entry.address, entry.port): (entry.active, entry.inactive) for entry in state.destinations}

    def _weighed(self) -> Iterator[list[Weighed]]:
        """Virtual servers in small parts: those the listing tells of, then all others."""
        pending: dict[Frontend, VirtualServerEntry] = {}
        others: list[VirtualServerEntry] = []
        told: set[Frontend] = set()
        for server in self._virtual_servers(statistics=False):
            frontend = server.frontend
            if frontend is None:
                others.append(server)
            else:
                pending[frontend] = server
        for part in self._listed():
            missed = [name for name, _ in part if name not in pending and name not in told]
            pending.update(self._named(missed, statistics=False))
            yield [(pending.pop(frontend), weights) for frontend, weights in part if frontend in pending]
            told.update(frontend for frontend, _ in part)
        for server in (*others, *pending.values()):
            yield [(server, VirtualServerState(server, self._destinations(server, statistics=False)).weights)]

    def _listed(self) -> Iterator[list[Listed]]:
        """What the listing tells, a page at a time; nothing where there is none.

        That is not all. To go on after a page the kernel counts the virtual servers of this
        namespace from the start (ip_vs_info_array), but while it prints it counts those of others
        too (ip_vs_info_seq_next): so where there are others, it skips some of this one. And it
        skips or repeats some where virtual servers are removed or made meanwhile.
        """
        if self._listing is None:
            return
        listing = Listing()
        offset = 0
        while True:
            try:
                # Not `read`: the position is the run's own, and 0 starts the kernel's count anew.
                text = os.pread(self._listing.fileno(), _PIECE, offset)
            except OSError:
                # The module was unloaded since; netlink finds it again if it is back.
                return
            if not text:
                break
            offset += len(text)
            yield listing.feed(text)
        yield listing.end()

    def _virtual_servers(self, *, statistics: bool) -> list[VirtualServerEntry]:
        decode = partial(codec.decode_service, statistics=True) if statistics else layout.decode_service
        return self._socket.dump(codec.request(Command.GET_SERVICE), "list IPVS virtual servers", decode)

    def _named(
        self, frontends: Sequence[Frontend], *, statistics: bool
    ) -> dict[Frontend, VirtualServerEntry]:
        found: dict[Frontend, VirtualServerEntry] = {}
        for start in range(0, len(frontends), self._socket.largest_batch):
            part = frontends[start : start + self._socket.largest_batch]
            payloads = [codec.request(Command.GET_SERVICE, codec.frontend_identity(name)) for name in part]
            for name, (reply, said) in zip(part, self._socket.ask(payloads), strict=True):
                if said.errno not in (0, errno.ESRCH):
                    raise RefusedError(f"read IPVS virtual server {name}", said)
                if reply:
                    found[name] = (
                        codec.decode_service(reply, statistics=True)
                        if statistics
                        else layout.decode_service(reply)
                    )
        return found

    def _destinations(self, server: VirtualServerEntry, *, statistics: bool) -> tuple[DestinationEntry, ...]:
        """The destinations of a server. One that is gone meanwhile has none: the kernel does not tell."""
        payload = codec.request(Command.GET_DEST, codec.service_identity(server))
        decode = partial(codec.decode_destination, family=server.family, statistics=statistics)
        fast = None if statistics else layout.decode_destinations
        return tuple(self._socket.dump(payload, "list IPVS destinations", decode, fast))

    # -- the rest ------------------------------------------------------------------------------

    def information(self) -> Information:
        """Version of IPVS and size of its connection table."""
        payload = codec.request(Command.GET_INFO)
        return codec.decode_information(self._socket.one(payload, "read IPVS information"))

    def timeouts(self) -> Timeouts:
        """Connection timeouts of this network namespace."""
        payload = codec.request(Command.GET_CONFIG)
        return codec.decode_timeouts(self._socket.one(payload, "read IPVS timeouts"))

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set the connection timeouts that are not 0.

        Raises:
            RefusedError: EINVAL, one is above 2147483647 jiffies: 24 days where HZ is 1000, 99 where it is 250.
        """
        self._socket.one(codec.encode_timeouts(timeouts), "set IPVS timeouts")


def _open_listing() -> io.FileIO | None:
    """The listing of this thread's network namespace, which it keeps; None without /proc."""
    try:
        return io.FileIO(_LISTING)
    except OSError:
        return None
