"""Writing to IPVS: operations in, failures out, in slices an event loop can live with.

Operations go in batches, many messages in one `send`; only the last asks for an
acknowledgement, errors come back by themselves with the sequence number of their message, and
the kernel goes on with the message after an error. Several things bound a batch: the send
buffer (EMSGSIZE), the receive buffer (every message may be refused, and each refusal occupies
about 1 KiB there) and the time the caller can be kept waiting. Most operations cost
microseconds, but a new scheduler waits for an RCU grace period (`synchronize_rcu` in
ip_vs_edit_service), 10 ms and more each, and an AddReal searches the list of all destinations
that were removed in the last two minutes (`ip_vs_trash_get_dest`): so few edits go in one batch,
and the size of a batch follows the time the last one took.

A virtual server that cannot be made, because it is somebody else's or its scheduler is not
there, must not get the destinations that were meant for it. So of each batch the new virtual
servers go first, and what follows in the run for one that was refused is not sent but failed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence

import msgspec

from edgeproxy.kernel.ipvs_operations import (
    AddVirtual,
    EditVirtual,
    Failure,
    Operation,
    encode,
    failure,
    follow_up,
    target,
)
from edgeproxy.kernel.ipvs_socket import LARGEST_BATCH, IpvsSocket
from edgeproxy.kernel.netlink import Answer, RefusedError
from edgeproxy.model import Frontend

SLICE_SECONDS = 0.03
"""A slice aims at less than this."""

_FIRST_BATCH = 64
# Each may wait for a grace period.
_EDITS_IN_A_BATCH = 4
# Add, edit because it exists, add because it does not: then someone else works against us.
_ROUNDS = 3


class Order(msgspec.Struct, frozen=True, gc=False):
    """What is to be done, and what it is done for: the operation the caller gave."""

    operation: Operation
    given: Operation


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
        return self._run([Order(operation, operation) for operation in operations], _ROUNDS)

    def _run(self, orders: Sequence[Order], rounds: int) -> Iterator[list[Failure]]:
        if not rounds:
            yield [failure(order.given, errno.EAGAIN) for order in orders]
            return
        start = 0
        while start < len(orders):
            part = self._next_batch(orders, start)
            start += len(part)
            began = time.monotonic()
            failures, again = self._do(part)
            self._adapt(len(part), time.monotonic() - began)
            yield failures
            if again:
                yield from self._run(again, rounds - 1)

    def _next_batch(self, orders: Sequence[Order], start: int) -> Sequence[Order]:
        end = min(start + self._batch, len(orders))
        edits = 0
        for at in range(start, end):
            if isinstance(orders[at].operation, EditVirtual):
                edits += 1
                if edits == _EDITS_IN_A_BATCH:
                    return orders[start : at + 1]
        return orders[start:end]

    def _adapt(self, done: int, took: float) -> None:
        if took > SLICE_SECONDS:
            self._batch = max(1, int(done * SLICE_SECONDS / took))
        elif took < SLICE_SECONDS / 2:
            self._batch = min(self._largest, max(self._batch, done * 2))

    def _do(self, orders: Sequence[Order]) -> tuple[list[Failure], list[Order]]:
        """What of a batch failed, and what has to be done in place of some of it."""
        first, rest = _new_servers_first(orders)
        failures: list[Failure] = []
        again: list[Order] = []
        if first:
            failures, again = self._send(first)
            for order in first:
                self._barred.pop(order.operation.frontend, None)
            for failed in failures:
                self._barred[failed.operation.frontend] = errno.EEXIST if failed.foreign else errno.ESRCH
        if self._barred:
            barred = [order for order in rest if order.operation.frontend in self._barred]
            rest = [order for order in rest if order.operation.frontend not in self._barred]
            failures += [failure(order.given, self._barred[order.operation.frontend]) for order in barred]
        if rest:
            more_failures, more = self._send(rest)
            failures += more_failures
            again += more
        return failures, again

    def _send(self, orders: Sequence[Order]) -> tuple[list[Failure], list[Order]]:
        refused = self._socket.tell([encode(order.operation) for order in orders])
        failures: list[Failure] = []
        again: list[Order] = []
        last = {target(order.operation): at for at, order in enumerate(orders)} if refused else {}
        for at, said in refused:
            order = orders[at]
            then = self._judge(order, said)
            if isinstance(then, Failure):
                failures.append(then)
            elif then is not None and last[target(order.operation)] == at:
                # Unless a later operation of this batch has settled the same target already.
                again.append(Order(then, order.given))
        return failures, again

    def _judge(self, order: Order, said: Answer) -> Operation | Failure | None:
        if said.errno == errno.EPERM:
            raise RefusedError(f"{order.given} (changing IPVS needs CAP_NET_ADMIN)", said)
        then = follow_up(order.operation, said.errno, said.reason)
        return failure(order.given, said.errno, said.reason) if isinstance(then, Failure) else then


def _new_servers_first(orders: Sequence[Order]) -> tuple[Sequence[Order], Sequence[Order]]:
    """The new virtual servers, and all else in order. One whose frontend was acted on before stays in place."""
    first: list[Order] = []
    rest: list[Order] = []
    seen: set[Frontend] = set()
    last: Frontend | None = None
    for order in orders:
        frontend = order.operation.frontend
        if isinstance(order.operation, AddVirtual) and frontend not in seen:
            first.append(order)
        else:
            rest.append(order)
        # Usually the same object as before; hashing it is what costs.
        if frontend is not last:
            seen.add(frontend)
            last = frontend
    return first, rest
