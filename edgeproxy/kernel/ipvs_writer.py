"""Writing to IPVS: operations in, failures out, in slices an event loop can live with.

Operations go in batches, many messages in one `send`; only the last asks for an
acknowledgement, errors come back by themselves with the sequence number of their message, and
the kernel goes on with the message after an error. Several things bound a batch: the send
buffer (EMSGSIZE), the receive buffer (every message may be refused, and each refusal occupies
about 1 KiB there) and the time the caller can be kept waiting. Most operations cost
microseconds, but a new scheduler waits for an RCU grace period (`synchronize_rcu` in
ip_vs_edit_service), 10 ms and more each, and an AddReal searches the list of all destinations
that were removed in the last two minutes (`ip_vs_trash_get_dest`): so few edits go in one batch,
and the size of a batch follows the time the last ones took. While the kernel works on one, in a
thread, the next is made ready to be sent: in a large run these cost about the same.

A virtual server that cannot be made, because it is somebody else's or its scheduler is not
there, must not get the destinations that were meant for it. So of each batch the new virtual
servers go first, and what follows in the run for one that was refused is not sent but failed.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from edgeproxy.kernel.ipvs_operations import (
    AddVirtual,
    EditVirtual,
    Failure,
    Operation,
    encode_all,
    failure,
    follow_up,
    target,
)
from edgeproxy.kernel.ipvs_socket import LARGEST_BATCH, IpvsSocket, Requests
from edgeproxy.kernel.netlink import Answer, RefusedError
from edgeproxy.model import Frontend

SLICE_SECONDS = 0.03
"""A slice aims at less than this."""

SWITCH_SECONDS = 0.0005

_FIRST_BATCH = 64
# Each may wait for a grace period.
_EDITS_IN_A_BATCH = 4
# Add, edit because it exists, add because it does not: then someone else works against us.
_ROUNDS = 3


class Again(msgspec.Struct, frozen=True, gc=False):
    """What is to be done in place of an operation that was refused, and that operation."""

    operation: Operation
    given: Operation


class Batch(msgspec.Struct, frozen=True):
    """Operations that go together, encoded: the new virtual servers, then all else. last: no other batch follows."""

    first: Sequence[Operation]
    rest: Sequence[Operation]
    first_requests: Requests | None
    rest_requests: Requests | None
    last: bool


class Done(msgspec.Struct, frozen=True):
    """What became of a batch; `took` seconds."""

    failures: list[Failure]
    again: list[Again]
    took: float


class Writer:
    """Does operations in order. One run; its pace is its own."""

    def __init__(self, socket: IpvsSocket, largest: int = LARGEST_BATCH) -> None:
        self._socket = socket
        self._largest = max(1, min(largest, socket.largest_batch))
        self._batch = min(_FIRST_BATCH, self._largest)
        self._barred: dict[Frontend, int] = {}

    def run(self, operations: Sequence[Operation]) -> Iterator[list[Failure]]:
        """Yields the failures of each slice after it is in the kernel.

        Raises:
            RefusedError: EPERM, nothing of it can be done (CAP_NET_ADMIN is missing).
        """
        return self._run(operations, {}, _ROUNDS)

    def _run(
        self, operations: Sequence[Operation], given: Mapping[int, Operation], rounds: int
    ) -> Iterator[list[Failure]]:
        """given: by `id`, what the caller gave where another operation is tried in its place."""
        if not rounds:
            yield [failure(given.get(id(operation), operation), errno.EAGAIN) for operation in operations]
            return
        batches = self._batches(operations)
        batch = next(batches, None)
        several = batch is not None and not batch.last
        with _beside() if several else contextlib.nullcontext() as beside:
            while batch is not None:
                if beside is None or batch.last:
                    following, done = None, self._do(batch, given)
                else:
                    doing = beside.submit(self._do, batch, given)
                    following, done = next(batches, None), doing.result()
                self._adapt(len(batch.first) + len(batch.rest), done.took)
                yield done.failures
                if again := done.again:
                    instead = {id(each.operation): each.given for each in again}
                    yield from self._run([each.operation for each in again], instead, rounds - 1)
                batch = following

    def _batches(self, operations: Sequence[Operation]) -> Iterator[Batch]:
        """The operations in batches, each encoded when it is asked for."""
        edits: Sequence[int] = ()
        if EditVirtual in set(map(type, operations)):
            edits = [at for at, operation in enumerate(operations) if type(operation) is EditVirtual]
        start = 0
        while start < len(operations):
            end = self._end_of_batch(start, len(operations), edits)
            first, rest = _new_servers_first(operations[start:end])
            yield Batch(first, rest, self._prepare(first), self._prepare(rest), end == len(operations))
            start = end

    def _prepare(self, operations: Sequence[Operation]) -> Requests | None:
        return self._socket.prepare(encode_all(operations)) if operations else None

    def _end_of_batch(self, start: int, end: int, edits: Sequence[int]) -> int:
        end = min(start + self._batch, end)
        last = bisect_left(edits, start) + _EDITS_IN_A_BATCH - 1
        return min(end, edits[last] + 1) if last < len(edits) else end

    def _adapt(self, done: int, took: float) -> None:
        if took > SLICE_SECONDS:
            self._batch = max(1, int(done * SLICE_SECONDS / took))
        elif took < SLICE_SECONDS / 2:
            self._batch = min(self._largest, max(self._batch, done * 2))

    def _do(self, batch: Batch, given: Mapping[int, Operation]) -> Done:
        """Send a batch; what of it failed, and what has to be done in place of some of it."""
        began = time.monotonic()
        failures: list[Failure] = []
        again: list[Again] = []
        rest, requests = batch.rest, batch.rest_requests
        if batch.first_requests is not None:
            failures, again = self._send(batch.first, batch.first_requests, given)
            for operation in batch.first:
                self._barred.pop(operation.frontend, None)
            for failed in failures:
                self._barred[failed.operation.frontend] = errno.EEXIST if failed.foreign else errno.ESRCH
        if self._barred:
            barred = [operation for operation in rest if operation.frontend in self._barred]
            rest = [operation for operation in rest if operation.frontend not in self._barred]
            requests = self._prepare(rest)
            failures += [failure(given.get(id(o), o), self._barred[o.frontend]) for o in barred]
        if requests is not None:
            more_failures, more = self._send(rest, requests, given)
            failures += more_failures
            again += more
        return Done(failures, again, time.monotonic() - began)

    def _send(
        self, operations: Sequence[Operation], requests: Requests, given: Mapping[int, Operation]
    ) -> tuple[list[Failure], list[Again]]:
        refused = self._socket.tell(requests)
        failures: list[Failure] = []
        again: list[Again] = []
        last = {target(operation): at for at, operation in enumerate(operations)} if refused else {}
        for at, said in refused:
            operation = operations[at]
            asked = given.get(id(operation), operation)
            then = self._judge(operation, asked, said)
            if isinstance(then, Failure):
                failures.append(then)
            elif then is not None and last[target(operation)] == at:
                # Unless a later operation of this batch has settled the same target already.
                again.append(Again(then, asked))
        return failures, again

    def _judge(self, operation: Operation, asked: Operation, said: Answer) -> Operation | Failure | None:
        if said.errno == errno.EPERM:
            raise RefusedError(f"{asked} (changing IPVS needs CAP_NET_ADMIN)", said)
        then = follow_up(operation, said.errno, said.reason)
        return failure(asked, said.errno, said.reason) if isinstance(then, Failure) else then


@contextlib.contextmanager
def _beside() -> Iterator[ThreadPoolExecutor]:
    """A thread for the kernel's work. When it comes back from there it would wait up to 5 ms for the interpreter."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with ThreadPoolExecutor(1, "ipvs") as thread:
            yield thread
    finally:
        sys.setswitchinterval(before)


def _new_servers_first(operations: Sequence[Operation]) -> tuple[Sequence[Operation], Sequence[Operation]]:
    """The new virtual servers, and all else in order. One whose frontend was acted on before stays in place."""
    first: list[Operation] = []
    rest: list[Operation] = []
    seen: set[Frontend] = set()
    last: Frontend | None = None
    for operation in operations:
        frontend = operation.frontend
        if type(operation) is AddVirtual and frontend not in seen:
            first.append(operation)
        else:
            rest.append(operation)
        # Usually the same object as before; hashing it is what costs.
        if frontend is not last:
            seen.add(frontend)
            last = frontend
    return first, rest
