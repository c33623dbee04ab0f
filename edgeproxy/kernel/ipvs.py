"""IPVS in the kernel: operations in, failures out; the whole state or a part of it read back.

Writing. Operations go in batches, many messages in one `send`; only the last asks for an
acknowledgement, errors come back by themselves with the sequence number of their message, and
the kernel goes on with the message after an error. Several things bound a batch: the send
buffer (EMSGSIZE), the receive buffer (every message may be refused, and each refusal occupies
about 1 KiB there) and the time the caller can be kept waiting. Almost all operations cost
microseconds, but an edit that changes the scheduler waits for an RCU grace period
(`synchronize_rcu` in ip_vs_edit_service), tens of milliseconds each: so the batch size follows
the time the last batch took.

Reading. The kernel lists virtual servers in one dump, but destinations only per virtual server.
A dump that fits into one datagram (about 80 destinations) is finished inside `send`, so many of
them travel in one; after one that does not fit, the rest of the batch is refused with EBUSY and
asked for again singly. The alternative, one pass over /proc/net/ip_vs, shows neither scheduler
flags nor thresholds nor tunnels, and its text can tear when servers change between two reads of
a page; measurements are in docs/ipvs.md.

Errors: :class:`NoIpvsError` if the kernel has no IPVS; those of :mod:`edgeproxy.kernel.netlink`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from edgeproxy.address import Address
from edgeproxy.kernel import ipvs_codec as codec
from edgeproxy.kernel import netlink
from edgeproxy.kernel.ipvs_codec import (
    Command,
    DestinationEntry,
    Information,
    Timeouts,
    VirtualServerEntry,
    VirtualServerState,
)
from edgeproxy.kernel.ipvs_operations import Failure, Operation, encode, failure, follow_up, target
from edgeproxy.kernel.netlink import Answer, Flag, NetlinkError, OverrunError, RefusedError
from edgeproxy.kernel.netlink_socket import NETLINK_GENERIC, NetlinkSocket
from edgeproxy.model import Frontend

_CONTROLLER = 16  # GENL_ID_CTRL
_GET_FAMILY = 3  # CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2  # CTRL_ATTR_*

SLICE_SECONDS = 0.03
"""A slice of writing or reading aims at less than this."""

_FIRST_BATCH = 64
_LARGEST_BATCH = 1024
_LARGEST_READ = 64
# What one refusal and one part of a dump occupy in the receive buffer, rounded up.
_REFUSAL_BYTES = 2048
_PART_BYTES = 48 << 10
# A message is at most about 200 bytes.
_MESSAGE_BYTES = 256
_ROUNDS = 3


class NoIpvsError(NetlinkError):
    """The kernel has no IPVS: the module `ip_vs` is not loaded, or this kernel has none."""

    def __init__(self) -> None:
        super().__init__(
            "this kernel has no IPVS: run 'modprobe ip_vs' (and list ip_vs in /etc/modules-load.d/ to keep it)"
        )


class Ipvs:
    """IPVS of the network namespace in which this is made.

    Raises:
        NoIpvsError: the kernel has no IPVS.
    """

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_GENERIC)
        self._batch = _FIRST_BATCH
        try:
            self._family = self._resolve()
        except BaseException:
            self._netlink.close()
            raise
        room = min(
            self._netlink.receive_buffer // 2 // _REFUSAL_BYTES,
            self._netlink.send_buffer // 2 // _MESSAGE_BYTES,
        )
        self._largest_batch = max(1, min(_LARGEST_BATCH, room))
        self._largest_read = max(1, min(_LARGEST_READ, self._netlink.receive_buffer // 2 // _PART_BYTES))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._netlink.close()

    # -- writing -------------------------------------------------------------------------------

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Do all operations in order; what failed, [] if all is as asked for.

        Raises:
            RefusedError: EPERM, nothing of it can be done (CAP_NET_ADMIN is missing).
            NoIpvsError: the module was unloaded meanwhile.
        """
        return [failed for part in self.apply_in_slices(operations) for failed in part]

    def apply_in_slices(
        self, operations: Sequence[Operation], slice_size: int = _LARGEST_BATCH
    ) -> Iterator[list[Failure]]:
        """As :meth:`apply`, but yields the failures of each slice after it is in the kernel.

        A slice is at most `slice_size` operations, fewer while the kernel is slow: it aims at
        :data:`SLICE_SECONDS`. A generator that is not run to its end has done whole slices only.
        """
        largest = max(1, min(slice_size, self._largest_batch))
        start = 0
        while start < len(operations):
            size = min(self._batch, largest)
            part = operations[start : start + size]
            began = time.monotonic()
            failures = self._apply_slice(part)
            self._adapt(time.monotonic() - began, len(part), size, largest)
            start += len(part)
            yield failures

    def _adapt(self, took: float, done: int, size: int, largest: int) -> None:
        if took > SLICE_SECONDS:
            self._batch = max(1, int(done * SLICE_SECONDS / took))
        elif done == size and took < SLICE_SECONDS / 2:
            self._batch = min(largest, size * 2)

    def _apply_slice(self, operations: Sequence[Operation]) -> list[Failure]:
        failures: list[Failure] = []
        for _ in range(_ROUNDS):
            refused = self._send(operations)
            if not refused:
                return failures
            last = {target(operation): at for at, operation in enumerate(operations)}
            again: list[Operation] = []
            for at, said in refused:
                operation = operations[at]
                if said.errno == errno.EPERM:
                    raise RefusedError(f"{operation} (changing IPVS needs CAP_NET_ADMIN)", said)
                then = follow_up(operation, said.errno)
                if isinstance(then, Failure):
                    failures.append(failure(operation, said.errno, said.reason))
                elif then is not None and last[target(operation)] == at:
                    # Unless a later operation of this slice has settled the same target already.
                    again.append(then)
            operations = again
            if not operations:
                return failures
        # Someone makes and removes the same entry as fast as we do.
        return failures + [failure(operation, errno.EAGAIN) for operation in operations]

    def _send(self, operations: Sequence[Operation]) -> list[tuple[int, Answer]]:
        """Positions and answers of the operations that were refused."""
        try:
            refused = self._send_once(operations)
        except OverrunError:
            if len(operations) == 1:
                raise
            # Some answers are lost. What was done may be done again, in batches whose answers fit.
            half = len(operations) // 2
            second = self._send(operations[half:])
            return self._send(operations[:half]) + [(at + half, said) for at, said in second]
        if any(said.errno == errno.ENOENT for _, said in refused) and self._renewed():
            return self._send_once(operations)
        return refused

    def _send_once(self, operations: Sequence[Operation]) -> list[tuple[int, Answer]]:
        sequences = self._netlink.sequences(len(operations))
        last = sequences[-1]
        family = self._family
        datagram = b"".join(
            [
                netlink.message(
                    family,
                    Flag.REQUEST | Flag.ACK if sequence == last else Flag.REQUEST,
                    sequence,
                    encode(operation),
                )
                for sequence, operation in zip(sequences, operations, strict=True)
            ]
        )
        refused = []
        for reply in self._netlink.exchange(datagram, (last,)):
            said = netlink.answer(reply)
            if said is not None and said.errno and reply.sequence in sequences:
                refused.append((reply.sequence - sequences[0], said))
        return refused

    # -- reading -------------------------------------------------------------------------------

    def dump(self, *, statistics: bool = False) -> list[VirtualServerState]:
        """All virtual servers of this namespace with their destinations, anyone's."""
        return [state for part in self.read_in_slices(statistics=statistics) for state in part]

    def read_in_slices(self, *, statistics: bool = False) -> Iterator[list[VirtualServerState]]:
        """As :meth:`dump`, but yields after each exchange with the kernel.

        It is no snapshot: what changes meanwhile may be seen in its old or in its new state, and a
        virtual server that is removed meanwhile may hide another one. A writer that acts on it
        finds out, for every operation is safe to repeat.
        """
        servers = self._virtual_servers(statistics=statistics)
        for start in range(0, len(servers), self._largest_read):
            part = servers[start : start + self._largest_read]
            lists = self._destinations(part, statistics=statistics)
            yield [VirtualServerState(server, found) for server, found in zip(part, lists, strict=True)]

    def dump_frontend(self, frontend: Frontend, *, statistics: bool = False) -> VirtualServerState | None:
        """One virtual server with its destinations, None if there is none at this frontend."""
        found = self.dump_frontends((frontend,), statistics=statistics)
        return found.get(frontend)

    def dump_frontends(
        self, frontends: Iterable[Frontend], *, statistics: bool = False
    ) -> dict[Frontend, VirtualServerState]:
        """The virtual servers of some frontends; frontends that are none are left out."""
        entries = self._named(list(frontends), statistics=statistics)
        found: dict[Frontend, VirtualServerState] = {}
        names = list(entries)
        for start in range(0, len(names), self._largest_read):
            part = names[start : start + self._largest_read]
            lists = self._destinations([entries[name] for name in part], statistics=statistics)
            found.update(
                (name, VirtualServerState(entries[name], destinations))
                for name, destinations in zip(part, lists, strict=True)
            )
        return found

    def connections(self, frontend: Frontend) -> dict[tuple[Address, int], tuple[int, int]]:
        """Active and inactive connections of each destination (address, port) of a frontend.

        Active: established. Inactive: everything else the kernel still has an entry for, which
        after TCP's end is 2 minutes by default. {} if there is no such virtual server.
        """
        state = self.dump_frontend(frontend)
        if state is None:
            return {}
        return {(entry.address, entry.port): (entry.active, entry.inactive) for entry in state.destinations}

    def _virtual_servers(self, *, statistics: bool) -> list[VirtualServerEntry]:
        replies = self._request(codec.request(Command.GET_SERVICE), Flag.DUMP, "list IPVS virtual servers")
        return [codec.decode_service(payload, statistics=statistics) for payload in replies]

    def _named(
        self, frontends: Sequence[Frontend], *, statistics: bool
    ) -> dict[Frontend, VirtualServerEntry]:
        found: dict[Frontend, VirtualServerEntry] = {}
        for start in range(0, len(frontends), self._largest_batch):
            part = frontends[start : start + self._largest_batch]
            payloads = [codec.request(Command.GET_SERVICE, codec.frontend_identity(name)) for name in part]
            for name, (replies, said) in zip(part, self._ask(payloads, Flag.ACK), strict=True):
                if said.errno not in (0, errno.ESRCH):
                    raise RefusedError(f"read IPVS virtual server {name}", said)
                if replies and not said.errno:
                    found[name] = codec.decode_service(replies[0], statistics=statistics)
        return found

    def _destinations(
        self, servers: Sequence[VirtualServerEntry], *, statistics: bool
    ) -> list[tuple[DestinationEntry, ...]]:
        """The destinations of each server. A server that is gone has none (the kernel does not tell)."""
        payloads = [codec.request(Command.GET_DEST, codec.service_identity(server)) for server in servers]
        lists: list[tuple[DestinationEntry, ...]] = []
        for server, payload, asked in zip(servers, payloads, self._ask(payloads, Flag.DUMP), strict=True):
            replies, said = asked
            if said.errno == errno.EBUSY:
                ((replies, said),) = self._ask([payload], Flag.DUMP)
            if said.errno:
                raise RefusedError("list IPVS destinations", said)
            lists.append(
                tuple(
                    codec.decode_destination(reply, server.family, statistics=statistics) for reply in replies
                )
            )
        return lists

    def _ask(self, payloads: Sequence[bytes], flag: Flag) -> list[tuple[list[bytes], Answer]]:
        """Many reads in one datagram: per request its replies and the final answer."""
        sequences = self._netlink.sequences(len(payloads))
        flags = Flag.REQUEST | flag
        datagram = b"".join(
            netlink.message(self._family, flags, sequence, payload)
            for sequence, payload in zip(sequences, payloads, strict=True)
        )
        replies: list[list[bytes]] = [[] for _ in payloads]
        answers = [Answer(0)] * len(payloads)
        for reply in self._netlink.exchange(datagram, sequences):
            if reply.sequence not in sequences:
                continue
            at = reply.sequence - sequences[0]
            said = netlink.answer(reply)
            if said is None:
                replies[at].append(reply.payload)
            else:
                answers[at] = said
        return list(zip(replies, answers, strict=True))

    # -- the rest ------------------------------------------------------------------------------

    def information(self) -> Information:
        """Version of IPVS and size of its connection table."""
        return codec.decode_information(self._one(Command.GET_INFO, "read IPVS information"))

    def timeouts(self) -> Timeouts:
        """Connection timeouts of this network namespace."""
        return codec.decode_timeouts(self._one(Command.GET_CONFIG, "read IPVS timeouts"))

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set the connection timeouts that are not 0.

        Raises:
            RefusedError: EINVAL, one is negative or above 2147483 seconds.
        """
        self._request(codec.encode_timeouts(timeouts), Flag.ACK, "set IPVS timeouts")

    def _one(self, command: Command, doing: str) -> bytes:
        replies = self._request(codec.request(command), Flag.ACK, doing)
        if not replies:
            raise OverrunError(f"{doing}: the kernel sent no answer")
        return replies[0]

    def _request(self, payload: bytes, flag: Flag, doing: str) -> list[bytes]:
        ((replies, said),) = self._ask([payload], flag)
        if said.errno == errno.ENOENT and self._renewed():
            ((replies, said),) = self._ask([payload], flag)
        if said.errno:
            raise RefusedError(doing, said)
        return replies

    def _renewed(self) -> bool:
        """Whether the family has another number now: the module was unloaded and loaded again."""
        before, self._family = self._family, self._resolve()
        return self._family != before

    def _resolve(self) -> int:
        """The number of the generic netlink family, which changes each time the module is loaded."""
        (sequence,) = self._netlink.sequences()
        payload = netlink.generic_header(_GET_FAMILY) + netlink.string(_FAMILY_NAME, codec.FAMILY_NAME)
        request = netlink.message(_CONTROLLER, Flag.REQUEST | Flag.ACK, sequence, payload)
        try:
            replies = self._netlink.request(request, sequence, "look up generic netlink family IPVS")
        except RefusedError as error:
            if error.errno == errno.ENOENT:
                raise NoIpvsError from None
            raise
        fields = netlink.attributes(replies[0].payload, netlink.GENERIC_HEADER_LENGTH)
        return netlink.number(fields[_FAMILY_ID])
