"""IPVS in the kernel: operations in, failures out; the whole state or a part of it read back.

Writing. Operations go in batches, many messages in one `send`; only the last asks for an
acknowledgement, errors come back by themselves with the sequence number of their message, and
the kernel goes on with the message after an error. Several things bound a batch: the send
buffer (EMSGSIZE), the receive buffer (every message may be refused, and each refusal occupies
about 1 KiB there) and the time the caller can be kept waiting. Most operations cost
microseconds, but a new scheduler waits for an RCU grace period (`synchronize_rcu` in
ip_vs_edit_service), 10 ms and more each, and an AddReal searches the list of all destinations
that were removed in the last two minutes (`ip_vs_trash_get_dest`): so few edits go in one batch,
and the size of a batch follows the time the last one took.

Reading. The kernel lists virtual servers in one dump, but destinations only per virtual server,
and a socket can have one dump under way: an IPVS dump that has anything to say is never finished
inside `send` (ip_vs_genl_dump_dests returns the length, so it is called again), the next request
in the datagram is refused with EBUSY. So it is one `send` and two `recv` per virtual server,
which costs the kernel about as much as printing /proc/net/ip_vs; that file shows neither
scheduler flags nor thresholds nor tunnels. Nearly all the time was spent in decoding, so that is
what was made fast (:func:`~edgeproxy.kernel.ipvs_codec.decode_destinations`).

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
from edgeproxy.kernel.ipvs_codec import Command
from edgeproxy.kernel.ipvs_entries import (
    DestinationEntry,
    Information,
    Timeouts,
    VirtualServerEntry,
    VirtualServerState,
)
from edgeproxy.kernel.ipvs_operations import (
    EditVirtual,
    Failure,
    Operation,
    encode,
    failure,
    follow_up,
    target,
)
from edgeproxy.kernel.netlink import Answer, Flag, NetlinkError, OverrunError, RefusedError
from edgeproxy.kernel.netlink_socket import NETLINK_GENERIC, NetlinkSocket
from edgeproxy.model import Frontend

_CONTROLLER = 16  # GENL_ID_CTRL
_GET_FAMILY = 3  # CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2  # CTRL_ATTR_*

SLICE_SECONDS = 0.03
"""A slice of writing or reading aims at less than this."""

_FIRST_BATCH = 64
_TOO_MUCH = (errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM)
_LARGEST_BATCH = 1024
# Each may wait for a grace period.
_EDITS_IN_A_BATCH = 4
# What one refusal occupies in the receive buffer and one message in the send buffer, rounded up.
_REFUSAL_BYTES = 2048
_MESSAGE_BYTES = 256
# Add, edit because it exists, add because it does not: then someone else works against us.
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
        :data:`SLICE_SECONDS`. A generator that is not run to its end has done whole slices only;
        an AddReal among them that met an entry already there may not have edited it yet.
        """
        return self._rounds(operations, max(1, slice_size), _ROUNDS)

    def _rounds(self, operations: Sequence[Operation], largest: int, rounds: int) -> Iterator[list[Failure]]:
        if not rounds:
            yield [failure(operation, errno.EAGAIN) for operation in operations]
            return
        start = 0
        while start < len(operations):
            part = self._next_batch(operations, start, largest)
            start += len(part)
            failures, again = self._apply_batch(part)
            yield failures
            if again:
                yield from self._rounds(again, largest, rounds - 1)

    def _next_batch(self, operations: Sequence[Operation], start: int, largest: int) -> Sequence[Operation]:
        end = min(start + min(self._batch, largest, self._largest_batch), len(operations))
        edits = 0
        for at in range(start, end):
            if isinstance(operations[at], EditVirtual):
                edits += 1
                if edits == _EDITS_IN_A_BATCH:
                    return operations[start : at + 1]
        return operations[start:end]

    def _apply_batch(self, operations: Sequence[Operation]) -> tuple[list[Failure], list[Operation]]:
        """What failed, and what has to be done instead of some operations."""
        began = time.monotonic()
        refused = self._send(operations)
        self._adapt(len(operations), time.monotonic() - began)
        failures: list[Failure] = []
        again: list[Operation] = []
        last = {target(operation): at for at, operation in enumerate(operations)} if refused else {}
        for at, said in refused:
            operation = operations[at]
            if said.errno == errno.EPERM:
                raise RefusedError(f"{operation} (changing IPVS needs CAP_NET_ADMIN)", said)
            then = follow_up(operation, said.errno, said.reason)
            if isinstance(then, Failure):
                failures.append(then)
            elif then is not None and last[target(operation)] == at:
                # Unless a later operation of this batch has settled the same target already.
                again.append(then)
        return failures, again

    def _adapt(self, done: int, took: float) -> None:
        if took > SLICE_SECONDS:
            self._batch = max(1, int(done * SLICE_SECONDS / took))
        elif took < SLICE_SECONDS / 2:
            self._batch = min(_LARGEST_BATCH, max(self._batch, done * 2))

    def _send(self, operations: Sequence[Operation]) -> list[tuple[int, Answer]]:
        """Positions and answers of the operations that were refused."""
        try:
            refused = self._send_once(operations)
        except (OverrunError, OSError) as error:
            if len(operations) == 1 or (isinstance(error, OSError) and error.errno not in _TOO_MUCH):
                raise
            # Answers are lost, or nothing was sent. What was done may be done again.
            half = len(operations) // 2
            first = self._send(operations[:half])
            return first + [(half + at, said) for at, said in self._send(operations[half:])]
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
        """As :meth:`dump`, but yields every :data:`SLICE_SECONDS` what was read since.

        It is no snapshot: what changes meanwhile may be seen in its old or in its new state, and a
        virtual server that is removed meanwhile may hide another one. A writer that acts on it
        finds out, for every operation is safe to repeat.
        """
        began = time.monotonic()
        done: list[VirtualServerState] = []
        for server in self._virtual_servers(statistics=statistics):
            done.append(VirtualServerState(server, self._destinations(server, statistics=statistics)))
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

    def _destinations(self, server: VirtualServerEntry, *, statistics: bool) -> tuple[DestinationEntry, ...]:
        """The destinations of a server. One that is gone meanwhile has none: the kernel does not tell."""
        (sequence,) = self._netlink.sequences()
        payload = codec.request(Command.GET_DEST, codec.service_identity(server))
        self._netlink.send(netlink.message(self._family, Flag.REQUEST | Flag.DUMP, sequence, payload))
        found: list[DestinationEntry] = []
        while datagram := self._netlink.read():
            fast = None if statistics else codec.decode_destinations(datagram, self._family, sequence)
            if fast is not None:
                found += fast
                continue
            for reply in netlink.messages(datagram):
                if reply.sequence != sequence:
                    continue
                said = netlink.answer(reply)
                if said is None:
                    found.append(
                        codec.decode_destination(reply.payload, server.family, statistics=statistics)
                    )
                elif said.errno:
                    raise RefusedError("list IPVS destinations", said)
                else:
                    return tuple(found)
        raise OverrunError("the kernel did not finish a list of IPVS destinations")

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
