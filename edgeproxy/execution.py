"""Runs plans on the wires into the kernel and keeps the mirror equal to what succeeded.

The order is the one `plan` promises. Every method is a generator that yields between calls into
the kernel, so that a caller with other work to do can do it; a caller without runs it to the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from edgeproxy.address import Network, is_ipv4
from edgeproxy.booking import enter
from edgeproxy.books import Actual, Drain, key_of
from edgeproxy.kernel.conntrack import Conntrack
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.kernel.ipvs_operations import (
    AddVirtual,
    Failure,
    Operation,
    RemoveVirtual,
)
from edgeproxy.kernel.nft import ElementRefusedError, Nft
from edgeproxy.kernel.routes import Routes
from edgeproxy.localroutes import LocalRoutes
from edgeproxy.model import Element, Frontend, SetName
from edgeproxy.ownership import OwnershipLog
from edgeproxy.plan import Plan
from edgeproxy.stale import forget

DRAIN_SETS = frozenset({SetName.DRAINS4, SetName.DRAINS6})
COMMIT_SLICE = 2048
"""Elements in one nft transaction: some ten milliseconds."""


class Wires(msgspec.Struct, frozen=True):
    """The four sockets into the kernel, all of one network namespace."""

    ipvs: Ipvs
    nft: Nft
    routes: Routes
    conntrack: Conntrack

    @classmethod
    def open(cls) -> Wires:
        """Open all of them in the network namespace of the calling thread.

        Raises:
            NoIpvsError: the kernel has no IPVS.
            OSError: it has no netfilter netlink, or permission is missing.
        """
        return cls(Ipvs(), Nft(), Routes(), Conntrack())

    def close(self) -> None:
        """Close all of them."""
        for wire in (self.ipvs, self.nft, self.routes, self.conntrack):
            wire.close()


class Executor:
    """Runs plans.

    counts: operations by (kind, result), since the start.
    failures: operations the kernel refused in the last run.
    refused: elements it refused in the last run, each with the reason.
    """

    def __init__(
        self,
        wires: Wires,
        actual: Actual,
        ownership: OwnershipLog,
        routes: LocalRoutes,
        anchors: Sequence[Network],
        clock: Callable[[], float],
    ) -> None:
        self._wires = wires
        self._routes = routes
        self._anchors = anchors
        self._actual = actual
        self._ownership = ownership
        self._clock = clock
        self.counts: Counter[tuple[str, str]] = Counter()
        self.failures: list[Failure] = []
        self.refused: list[tuple[Element, str]] = []

    def run(self, plan: Plan) -> Iterator[None]:
        """Run a plan.

        Raises:
            NftError, NetlinkError, RouteError, ConntrackError, OSError: a wire failed; the mirror
                must be read anew.
        """
        self.failures, self.refused = [], []
        if plan.add_routes:
            self._routes.add_addresses(plan.add_routes)
            self._actual.routes.update(plan.add_routes)
        kinds = Counter(map(type, plan.ipvs))
        if kinds[AddVirtual]:
            self._ownership.add(op.server.frontend for op in plan.ipvs if type(op) is AddVirtual)
        timeouts = {drain_element(drain): seconds for drain, seconds in plan.add_drains}
        yield from self._commit([*plan.add_elements, *timeouts], plan.replaced, timeouts)
        now = self._clock()
        self._actual.drains.update((drain, now + seconds) for drain, seconds in plan.add_drains)
        if plan.ipvs:
            yield from self._operate(plan.ipvs)
        if plan.stale:
            self.counts["ForgetFlow", "done"] += forget(self._wires.conntrack, plan.stale, self._anchors)
        ended = [drain_element(drain) for drain in plan.remove_drains]
        yield from self._commit([], [*plan.remove_elements, *ended], {})
        for drain in plan.remove_drains:
            self._actual.drains.pop(drain, None)
        if kinds[RemoveVirtual]:
            self._ownership.remove(op.frontend for op in plan.ipvs if type(op) is RemoveVirtual)
        if plan.remove_routes:
            self._routes.remove_addresses(plan.remove_routes)
            self._actual.routes.difference_update(plan.remove_routes)

    def _commit(
        self, adds: Sequence[Element], removes: Sequence[Element], timeouts: Mapping[Element, float]
    ) -> Iterator[None]:
        for coming, going in in_slices(adds, removes):
            try:
                self._transact(coming, going, timeouts)
            except ElementRefusedError:
                # All of it failed for one element: each by itself, so that only that one is left out.
                for one, other in in_slices(coming, going, size=1):
                    self._transact_alone(one, other, timeouts)
            yield

    def _transact(
        self, coming: Sequence[Element], going: Sequence[Element], timeouts: Mapping[Element, float]
    ) -> None:
        here = {e: timeouts[e] for e in coming if e in timeouts} if timeouts else {}
        self._wires.nft.commit(coming, going, here)
        self._note_elements(coming, going)

    def _transact_alone(
        self, coming: Sequence[Element], going: Sequence[Element], timeouts: Mapping[Element, float]
    ) -> None:
        try:
            self._transact(coming, going, timeouts)
        except ElementRefusedError as error:
            self.refused.extend((element, str(error)) for element in (*coming, *going))
            self.counts["AddElement", "failed"] += len(coming)

    def _note_elements(self, added: Sequence[Element], removed: Sequence[Element]) -> None:
        elements = self._actual.elements
        for element in removed:
            elements.pop(key_of(element), None)
        elements.update((key_of(e), e) for e in added if e.set not in DRAIN_SETS)
        self.counts["AddElement", "done"] += len(added)
        self.counts["RemoveElement", "done"] += len(removed)

    def _operate(self, operations: Sequence[Operation]) -> Iterator[None]:
        for failures in self._wires.ipvs.apply_in_slices(operations):
            self.failures.extend(failures)
            yield
        done = operations
        if self.failures:
            failed = {id(failure.operation) for failure in self.failures}
            done = [operation for operation in operations if id(operation) not in failed]
            self._count([operation for operation in operations if id(operation) in failed], "failed")
        self._count(done, "done")
        enter(done, self._actual)
        self._note_foreign()

    def _count(self, operations: Sequence[Operation], result: str) -> None:
        for kind, count in Counter(map(type, operations)).items():
            self.counts[kind.__name__, result] += count

    def _note_foreign(self) -> None:
        """Virtual servers that turned out to be somebody else's; the writer gave them nothing."""
        foreign = {failure.operation.frontend for failure in self.failures if failure.foreign}
        self._actual.foreign.update(foreign)
        self._ownership.remove(foreign)


def in_slices(
    adds: Sequence[Element], removes: Sequence[Element], size: int = COMMIT_SLICE
) -> Iterator[tuple[list[Element], list[Element]]]:
    """Transactions of about `size` elements: which come, which go.

    A value and the one it replaces are in the same one, and so are the ranges of one frontend: a
    range that overlaps one that is still there is refused.
    """
    if not removes and not any(element.until for element in adds):
        for start in range(0, len(adds), size):
            yield list(adds[start : start + size]), []
        return
    bundles: dict[object, tuple[list[Element], list[Element]]] = {}
    for which, elements in enumerate((adds, removes)):
        for element in elements:
            bundle = (element.set, element.key[:-1]) if element.until else key_of(element)
            bundles.setdefault(bundle, ([], []))[which].append(element)
    coming: list[Element] = []
    going: list[Element] = []
    for added, removed in bundles.values():
        coming += added
        going += removed
        if len(coming) + len(going) >= size:
            yield coming, going
            coming, going = [], []
    if coming or going:
        yield coming, going


def drain_element(drain: Drain) -> Element:
    """The element whose timeout is a drain's deadline."""
    frontend = drain.frontend
    name = SetName.DRAINS4 if is_ipv4(frontend.address) else SetName.DRAINS6
    return Element(name, (frontend.address, frontend.protocol, frontend.port, *drain.real))


def drain_of(element: Element) -> Drain:
    """The drain an element of the drain sets stands for."""
    address, protocol, port, real_address, real_port = element.key
    frontend = Frontend(address, protocol, port)  # type: ignore[arg-type]  # the sets' key types say so
    return Drain(frontend, (real_address, real_port))  # type: ignore[arg-type]
