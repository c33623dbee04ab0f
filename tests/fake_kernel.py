"""A kernel in memory: what the engine uses of IPVS, nf_tables, local routes and conntrack.

IPVS is faked below our own code, at the messages: writer, follow-ups and codec are the real ones.
The sets are faked at the level of `Nft`. That both behave as the real ones is what
tests/kernel/test_fake_is_honest.py and tests/native/test_fake_is_honest.py check.

Every write is one step; :meth:`FakeKernel.stop_after` makes the machine stop between two of them.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, cast

from edgeproxy.address import Address, Network, family
from edgeproxy.books import Socket
from edgeproxy.execution import Wires
from edgeproxy.kernel import ipvs_codec as codec
from edgeproxy.kernel.conntrack import Conntrack, Flow, Selection
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.kernel.ipvs_codec import Command
from edgeproxy.kernel.ipvs_entries import DestinationEntry, VirtualServerEntry
from edgeproxy.kernel.ipvs_operations import AddReal, AddVirtual
from edgeproxy.kernel.ipvs_socket import IpvsSocket, Requests
from edgeproxy.kernel.netlink import Answer
from edgeproxy.kernel.nft import ElementRefusedError, FrameMissingError, Nft
from edgeproxy.kernel.nft_codec import Change, Generation, Held
from edgeproxy.kernel.nft_codec import Command as NftCommand
from edgeproxy.kernel.nft_sets import SETS
from edgeproxy.kernel.routes import (
    DeleteProxy,
    DeleteRoute,
    Outcome,
    PutProxy,
    PutRoute,
    RouteOperation,
    Routes,
    State,
)
from edgeproxy.kernel.routes_codec import OUR_PROTOCOL, HostAddress, Interface, Proxy, Route, RouteType, Table
from edgeproxy.model import Element, Frontend, RealServer, SetName, VirtualServer

HASHED = 0x02
Write = Callable[[], None]


class CrashError(BaseException):
    """The process is dead; nothing may catch it."""


class FakeKernel:
    """The state of one host, and the wires into it.

    now: the clock, in seconds; only :meth:`pass_time` moves it.
    writes: how many there were.
    """

    def __init__(self, schedulers: Iterable[str] = ("rr", "wrr", "lc", "wlc", "sh", "mh")) -> None:
        self.now = 1000.0
        self.writes = 0
        self.schedulers = frozenset(schedulers)
        self.servers: dict[Frontend, VirtualServerEntry] = {}
        self.reals: dict[Frontend, dict[Socket, DestinationEntry]] = {}
        self.connections: dict[tuple[Frontend, Socket], int] = {}
        self.sets: dict[SetName, dict[object, tuple[Element, float | None]]] | None = None
        self.script = ""
        self.generation = 1
        self.routes: dict[Network, Address | None] = {}
        self.proxies: set[tuple[Address, str]] = set()
        self.addresses: tuple[HostAddress, ...] = ()
        self.other_routes: tuple[Route, ...] = ()
        self.flows: list[Flow] = []
        self._limit: int | None = None
        self._error: BaseException = CrashError()

    def wires(self) -> Wires:
        """The sockets of one process."""
        return Wires(FakeIpvs(self), FakeNft(self), FakeRoutes(self), FakeConntrack(self))

    def clock(self) -> float:
        """The monotonic clock."""
        return self.now

    def pass_time(self, seconds: float) -> None:
        """Let time go by; elements whose time is over vanish."""
        self.now += seconds
        for elements in (self.sets or {}).values():
            for key in [key for key, (_, until) in elements.items() if until and until <= self.now]:
                del elements[key]

    def stop_after(self, writes: int | None, error: BaseException | None = None) -> None:
        """Raise an error, by default a crash, instead of the write after so many; None: never."""
        self._limit = None if writes is None else self.writes + writes
        self._error = error or CrashError()

    def write(self) -> None:
        """Count one write, or fail."""
        if self._limit is not None and self.writes >= self._limit:
            raise self._error
        self.writes += 1

    def elements(self, name: SetName) -> dict[object, tuple[Element, float | None]]:
        """The elements of a set by their identity."""
        if self.sets is None:
            raise FrameMissingError(f"set {name} is not there: load the frame")
        return self.sets[name]

    def make_foreign(self, server: VirtualServer, *reals: RealServer) -> None:
        """Another program makes a virtual server."""
        told = FakeIpvs(self).apply([AddVirtual(server), *(AddReal(server.frontend, r) for r in reals)])
        assert not told

    def flush_ruleset(self) -> None:
        """Another program runs `nft flush ruleset`."""
        self.sets, self.script = None, ""
        self.generation += 1


class FakeIpvs(Ipvs):
    """The real reader and writer on a socket of our own."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._socket = cast(IpvsSocket, FakeIpvsSocket(kernel))
        self._listing = None


class FakeIpvsSocket:
    """Answers IPVS messages as ip_vs_genl_set_cmd does."""

    largest_batch = 7

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def close(self) -> None:
        """Nothing to close."""

    def prepare(self, payloads: Sequence[bytes]) -> Requests:
        """Requests for `tell`."""
        return Requests(0, payloads, range(1, len(payloads) + 1), b"")

    def tell(self, requests: Requests) -> list[tuple[int, Answer]]:
        """Make requests in order; positions and answers of those that were refused."""
        refused = []
        for at, payload in enumerate(requests.payloads):
            number = self._refusal(payload)
            if number:
                refused.append((at, Answer(number)))
        return refused

    def _refusal(self, payload: bytes) -> int:
        self._kernel.write()
        command, entry = Command(payload[0]), codec.decode_service(payload)
        frontend = entry.frontend
        assert frontend is not None
        if command is Command.NEW_SERVICE:
            if frontend in self._kernel.servers:
                return errno.EEXIST
            return self._set_service(frontend, entry)
        if frontend not in self._kernel.servers:
            return errno.ESRCH
        if command is Command.SET_SERVICE:
            return self._set_service(frontend, entry)
        if command is Command.DEL_SERVICE:
            del self._kernel.servers[frontend], self._kernel.reals[frontend]
            return 0
        return self._change_destination(command, frontend, codec.decode_destination(payload, entry.family))

    def _set_service(self, frontend: Frontend, entry: VirtualServerEntry) -> int:
        if entry.scheduler not in self._kernel.schedulers:
            return errno.ENOENT
        flags = entry.flags | HASHED
        self._kernel.servers[frontend] = _replace(entry, flags=flags)
        self._kernel.reals.setdefault(frontend, {})
        return 0

    def _change_destination(self, command: Command, frontend: Frontend, entry: DestinationEntry) -> int:
        reals, socket = self._kernel.reals[frontend], (entry.address, entry.port)
        if command is Command.NEW_DEST:
            if socket in reals:
                return errno.EEXIST
            reals[socket] = entry
        elif socket not in reals:
            return errno.ENOENT
        elif command is Command.SET_DEST:
            reals[socket] = entry
        else:
            del reals[socket]
        return 0

    def ask(self, payloads: Sequence[bytes]) -> list[tuple[bytes, Answer]]:
        """Single reads."""
        return [self._one(codec.decode_service(payload).frontend) for payload in payloads]

    def _one(self, frontend: Frontend | None) -> tuple[bytes, Answer]:
        entry = self._kernel.servers.get(frontend) if frontend else None
        if entry is None:
            return b"", Answer(errno.ESRCH)
        return codec.request(Command.NEW_SERVICE, codec.encode_service(entry)), Answer(0)

    def dump(self, payload: bytes, *_: object) -> list[Any]:
        """A list, of what the payload asks for."""
        if payload[0] == Command.GET_SERVICE:
            return list(self._kernel.servers.values())
        frontend = codec.decode_service(payload).frontend
        assert frontend is not None
        active = self._kernel.connections
        return [
            _replace(entry, active=active.get((frontend, socket), 0))
            for socket, entry in self._kernel.reals.get(frontend, {}).items()
        ]


class FakeNft(Nft):
    """The tables, at the level of elements; a frame is its script."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self._seen = 0

    def close(self) -> None:
        """Nothing to close."""

    def generation(self) -> Generation:
        """The rule set's present generation."""
        return Generation(self._kernel.generation)

    def load(self, script: str, seconds: float = 60.0) -> None:
        """Make the frame; elements that are there stay."""
        self._kernel.write()
        if self._kernel.sets is None:
            self._kernel.sets = {name: {} for name in SETS}
        self._kernel.script = script
        self._advance()

    def fingerprint(self) -> str | None:
        """Digest of the frame, None without one."""
        if self._kernel.sets is None:
            return None
        return hashlib.blake2b(self._kernel.script.encode()).hexdigest()

    def commit(
        self,
        adds: Sequence[Element],
        removes: Sequence[Element] = (),
        timeouts: Mapping[Element, float] | None = None,
    ) -> None:
        """Remove, then add, all or nothing."""
        if not adds and not removes:
            return
        self._kernel.write()
        sets = {name: dict(self._kernel.elements(name)) for name in SETS}
        for element in removes:
            sets[element.set].pop(_identity(element), None)
        for element in adds:
            seconds = (timeouts or {}).get(element)
            self._add(sets[element.set], element, self._kernel.now + seconds if seconds else None)
        self._kernel.sets = sets
        self._advance()

    def _add(
        self, held: dict[object, tuple[Element, float | None]], element: Element, until: float | None
    ) -> None:
        there = held.get(_identity(element))
        if there is not None:
            if (there[0].verdict, there[0].data) != (element.verdict, element.data):
                raise _refused(element)
            return
        # nft_pipapo_insert looks up the two ends only: a range round another one passes.
        ends = (element.key, element.until) if element.until else ()
        if any(_covers(other, end) for end in ends for other, _ in held.values()):
            raise _refused(element)
        held[_identity(element)] = (element, until)

    def _advance(self) -> None:
        if self._seen == self._kernel.generation:
            self._seen += 1
        self._kernel.generation += 1

    def dump(self, name: SetName) -> list[Held]:
        """The elements of one set."""
        now = self._kernel.now
        return [Held(e, None if until is None else until - now) for e, until in self._elements(name)]

    def _elements(self, name: SetName) -> list[tuple[Element, float | None]]:
        return list(self._kernel.elements(name).values())


class FakeRoutes(Routes):
    """Our local routes; addresses and other routes are as the test says."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def close(self) -> None:
        """Nothing to close."""

    def loopback_up(self) -> bool:
        """It always is."""
        return True

    def addresses(self) -> list[HostAddress]:
        """The host's addresses."""
        return list(self._kernel.addresses)

    def routes(self, table: Table = Table.MAIN) -> list[Route]:
        """The routes of other programs."""
        return [route for route in self._kernel.other_routes if route.table == table]

    def interfaces(self) -> list[Interface]:
        """One beside `lo`."""
        return [Interface(1, "lo", True, True), Interface(2, "eth0", True, False)]

    def proxies(self) -> list[Proxy]:
        """The proxy neighbours, all ours."""
        return [Proxy(*pair) for pair in sorted(self._kernel.proxies)]

    def own(self) -> list[Route]:
        """Our local routes."""
        return [
            Route(network, Table.LOCAL, RouteType.LOCAL, OUR_PROTOCOL, "lo", source=source)
            for network, source in self._kernel.routes.items()
        ]

    def apply(self, operations: Sequence[RouteOperation]) -> tuple[Outcome, ...]:
        """Carry out operations in order."""
        return tuple(self._applied(operation) for operation in operations)

    def _applied(self, operation: RouteOperation) -> Outcome:
        self._kernel.write()
        match operation:
            case PutRoute(network, source):
                if any(r.network == network and r.table == Table.LOCAL for r in self._kernel.other_routes):
                    return Outcome(operation, State.TAKEN, f"{network} is local already")
                if source is not None and all(a.address != source for a in self._kernel.addresses):
                    return Outcome(operation, State.WAITING, "the source is no address of this host")
                self._kernel.routes[network] = source
            case DeleteRoute(network):
                self._kernel.routes.pop(network, None)
            case PutProxy(address, interface):
                self._kernel.proxies.add((address, interface))
            case DeleteProxy(address, interface):
                self._kernel.proxies.discard((address, interface))
        return Outcome(operation, State.DONE)


class FakeConntrack(Conntrack):
    """Tracked flows in a list."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def close(self) -> None:
        """Nothing to close."""

    def flows(self, selection: Selection) -> Generator[Flow, None, None]:
        """The flows of a selection."""
        for flow in list(self._kernel.flows):
            if flow in selection and family(flow.original.source) == selection.family:
                yield flow

    def delete(self, flows: Sequence[Flow]) -> int:
        """Delete flows; how many were still there."""
        for flow in flows:
            self._kernel.write()
            self._kernel.flows.remove(flow)
        return len(flows)


def _replace(entry: Any, **fields: object) -> Any:
    values = {name: getattr(entry, name) for name in entry.__struct_fields__}
    return type(entry)(**{**values, **fields})


def _identity(element: Element) -> object:
    return (element.key, element.until)


def _covers(element: Element, key: tuple[object, ...]) -> bool:
    return all(
        first <= each <= last  # type: ignore[operator]  # fields of one type
        for first, each, last in zip(element.key, key, element.until, strict=True)
    )


def _refused(element: Element) -> ElementRefusedError:
    change = Change(NftCommand.NEW_ELEMENTS, element.set, (element,), (0,), b"")
    return ElementRefusedError(change, element, Answer(errno.EEXIST))
