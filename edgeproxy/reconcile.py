"""The engine: records in, kernel out. Synchronous; no event loop, no store, no signal in here.

    load, apply                        note what has changed (cheap, no kernel)
    keep, recall                       hand what is known to a later process
    set_surroundings                   the same for the host; looks at our routes
    sync                               compile what changed, plan, execute
    settle                             end drains that are idle or over
    audit                              compare the kernel with the mirror, repair

The last three are generators that yield between short steps; a sync may run between two steps of
an audit, nothing else overlaps.

A wire that fails (an exception) leaves the mirror in doubt: the next sync reads the kernel anew and
plans everything. An operation that is refused is a finding, tried again by the audit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

import msgspec

from edgeproxy.address import Address
from edgeproxy.books import (
    DETOUR_SETS,
    Actual,
    Desired,
    Drain,
    HealthCheck,
    Part,
    Socket,
    Touched,
    companions,
    differing,
)
from edgeproxy.catalog import Catalog
from edgeproxy.coexistence import Coexistence
from edgeproxy.compile import Host, compile_service, detoured
from edgeproxy.detours import Detours
from edgeproxy.etcd.ledger import LedgerImage
from edgeproxy.execution import Executor, Wires
from edgeproxy.frame import FrameKeeper
from edgeproxy.held import kernel_objects
from edgeproxy.journal import tell
from edgeproxy.kept import Basis, Kept
from edgeproxy.localroutes import LocalRoutes
from edgeproxy.mirror import Mirror
from edgeproxy.model import Finding, Frontend, Reason
from edgeproxy.ownership import OwnershipLog
from edgeproxy.plan import Plan, Planner, leaving
from edgeproxy.proxyneighbours import ProxyNeighbours
from edgeproxy.refused import Refused
from edgeproxy.stale import forget
from edgeproxy.surroundings import Surroundings
from edgeproxy.tuning import Tuning
from edgeproxy.versions import Event, KeyValue

log = logging.getLogger(__name__)

NEVER = 0
"""No generation of the rule set: whatever it is at the next look, it is another one."""
COMPILE_SLICE = 50
"""Services compiled between two yields: some milliseconds."""


class Reconciler:
    """Keeps one host's kernel equal to the records.

    applied: the revision that is wholly in the kernel, 0 before the first sync.
    """

    def __init__(
        self,
        catalog: Catalog,
        surroundings: Surroundings,
        wires: Wires,
        ownership: OwnershipLog,
        frame: FrameKeeper,
        clock: Callable[[], float],
        *,
        tuning: Tuning | None = None,
        coexistence: Coexistence | None = None,
    ) -> None:
        self.catalog = catalog
        self.desired = Desired()
        self.actual = Actual()
        self.applied = 0
        self._anchors = surroundings.proxy.anchor_cidrs
        self._routes = LocalRoutes(wires.routes, surroundings)
        self.executor = Executor(wires, self.actual, ownership, self._routes, self._anchors, clock)
        self._surroundings = surroundings
        self._wires = wires
        self._ownership = ownership
        self._frame = frame
        self._clock = clock
        self._mirror = Mirror(wires, self.actual, self._anchors, clock)
        self._proxies = ProxyNeighbours(wires.routes)
        self._tuning = tuning or Tuning()
        self._detours = Detours(self._anchors)
        self._coexistence = coexistence or Coexistence()
        self._without_anchor: set[str] = set()
        self._held_before: frozenset[str] = frozenset()
        self._refused = Refused()
        self._dirty: set[str] = set()
        self._touched = Touched()
        self._in_doubt = True
        self._routes_due = True
        self._lost_drains: Mapping[Drain, float] = {}

    # -- what has changed ----------------------------------------------------------------------

    def load(self, records: Iterable[KeyValue], revision: int) -> None:
        """Take a complete snapshot of the records."""
        self._dirty |= self.catalog.replace(records, revision)

    def apply(self, events: Iterable[Event], revision: int, *, gap: bool = False) -> None:
        """Take what happened since the last snapshot or call; `gap` if versions in between are left out."""
        self._dirty |= self.catalog.apply(events, revision, gap=gap)

    def keep(self, ledger: LedgerImage, build: str) -> Kept | None:
        """What this host knows, for a later process to :meth:`recall`; None before the first sync or in doubt.

        ledger: of the store, at the catalog's revision. build: see :class:`~edgeproxy.kept.Basis`.
        """
        if self._in_doubt or not self.applied:
            return None
        left_out = self._dirty | self._without_anchor
        parts = {
            name: part
            for name, part in self.desired.parts.items()
            if name not in left_out and not part.momentary
        }
        return Kept(self._basis(build), ledger, self.catalog.image(), parts)

    def recall(self, kept: Kept) -> None:
        """Begin with what an earlier process knew; what depends on this host is compiled anew if it has changed."""
        self.catalog = Catalog.of(kept.basis.prefix, kept.catalog)
        parts = kept.parts if kept.basis == self._basis(kept.basis.build) else {}
        self._dirty.update(set(self.catalog.services()) - parts.keys())
        # The first sync looks for itself at what differs.
        self.desired.put(parts)

    def _basis(self, build: str) -> Basis:
        around = self._surroundings
        return Basis(build, self.catalog.prefix, around.node, around.proxy, around.refusals)

    def mark(self, services: Iterable[str]) -> None:
        """Note services that must be compiled anew for any other reason."""
        self._dirty.update(services)

    def set_surroundings(self, surroundings: Surroundings) -> None:
        """Take the host's new facts or settings; what depends on them follows with the next sync.

        Whatever made the caller look at the host may have been the loss of one of our routes.

        Raises:
            RouteError: our routes cannot be read.
        """
        self._routes_due |= self._routes.disturbed()
        if surroundings == self._surroundings:
            return
        before, self._surroundings = self._surroundings, surroundings
        if (before.node, before.proxy, before.refusals) != (
            surroundings.node,
            surroundings.proxy,
            surroundings.refusals,
        ):
            self._dirty.update(self.catalog.services())
        self._routes_due = True
        # Either is put right where the tables are looked at.
        self._in_doubt |= before.frame != surroundings.frame
        self._in_doubt |= before.proxy.accept_in is not surroundings.proxy.accept_in

    def doubt(self) -> None:
        """Note that a wire failed: the next sync begins with reading the kernel."""
        self._in_doubt = True

    @property
    def pending(self) -> bool:
        """Whether a sync has anything to do, if only to say that a revision changes nothing here."""
        news = self.applied < self.catalog.revision
        return bool(news or self._dirty or self._touched or self._routes_due or self._in_doubt)

    # -- work ----------------------------------------------------------------------------------

    def sync(self) -> Iterator[None]:
        """Bring the kernel to what the records say.

        Raises:
            NftError, NetlinkError, RouteError, ConntrackError, OSError, StateError: a wire failed;
                run it again, it will begin with reading.
        """
        revision = self.catalog.revision
        adopting, self._in_doubt = self._in_doubt, True
        if adopting:
            yield from self._adopt()
        drains = yield from self._compile()
        touched, self._touched = self._touched, Touched()
        routes_due, self._routes_due = adopting or self._routes_due, False
        if routes_due:
            arrived = self._routes.ensure(self._surroundings, {*self.desired.routes, *self.actual.routes})
            self._forget_strays(arrived)
        if routes_due or touched.routes:
            self._proxies.ensure(self.desired.routes, answer=self._surroundings.proxy.answer_arp)
        if not self._tuning.ipv6 and self._wants_ipv6():
            self._tuning.apply(ipv6=True)
        if touched:
            yield from self._reconcile(touched, drains, adopting=adopting)
        self._in_doubt = False
        self.applied = max(self.applied, revision)

    def settle(self) -> Iterator[None]:
        """End drains that are idle or over. Raises as :meth:`sync`."""
        yield from self._settle(dict.fromkeys(self.actual.drains, self._surroundings.proxy.drain))

    def audit(self, seconds: float = float("inf")) -> Iterator[None]:
        """Compare the kernel with the mirror and put right what somebody else changed.

        seconds: how long IPVS may be looked at; what is left is looked at next time.
        Raises as :meth:`sync`.
        """
        if self._in_doubt:
            yield from self.sync()
            return
        self._tuning.apply(ipv6=self._wants_ipv6())
        self.actual.routes = self._routes.read()
        self._routes_due = True
        self._touched.routes.update(self.actual.routes - self.desired.routes.keys())
        self._look_at_tables()
        self._coexistence.look_at_sockets()
        yield
        until = self._clock() + seconds
        for touched in self._mirror.check_servers():
            self._touched.update(touched)
            if self._clock() >= until:
                break
            yield
        self._touched.update(self._refused.again())
        self._release_detours()
        if self._ownership.incomplete:
            self._ownership.rewrite(self.actual.servers)
        yield from self.sync()

    def _adopt(self) -> Iterator[None]:
        """Read everything; what is there and right will not be written again."""
        self._tuning.apply(ipv6=self._wants_ipv6())
        self.actual.routes = self._routes.read()
        self._look_at_tables(always=True)
        self._coexistence.look_at_sockets()
        yield
        for (name, _), element in self.actual.elements.items():
            if name in DETOUR_SETS:
                self._detours.adopt(element.key[0], element.data)  # type: ignore[arg-type]  # an address
        yield from self._mirror.read_servers(self._ownership.read())
        self._ownership.rewrite(self.actual.servers)
        self._touched = differing(self.desired, self.actual)
        self._touched.update(self._refused.again())

    def _look_at_tables(self, *, always: bool = False) -> None:
        """Put the frame right and read the elements, if anybody has changed the rule set."""
        nft = self._wires.nft
        if not always and not nft.disturbed():
            return
        # Before the look: what somebody changes while it lasts is looked at next time.
        nft.accept(nft.generation().number)
        seen = self._coexistence.look_at_rules(self._surroundings.proxy)
        if self._frame.ensure(self._surroundings.frame):
            log.info("loaded the frame of tables inet and arp edgeproxy")
        self._touched.update(self._mirror.read_elements())
        if not seen:
            nft.accept(NEVER)
        self._lost_drains = self._mirror.lost_drains()

    def _compile(self) -> Generator[None, None, dict[Frontend, float]]:
        """Compile what is dirty; answers the drain times of frontends that were wanted until now."""
        names, self._dirty = self._dirty, set()
        lingering: dict[Frontend, float] = {}
        parts: dict[str, Part | None] = {}
        around = self._surroundings
        host = Host(around.node, around.proxy, around.refusals, self._detours)
        for count, name in enumerate(sorted(names), 1):
            before = self.desired.parts.get(name)
            if before is not None:
                lingering.update((target.server.frontend, target.drain) for target in before.targets)
            parts[name] = self._part(name, host)
            if not count % COMPILE_SLICE:
                yield
        self._touched.update(self.desired.put(parts))
        held = self.catalog.held()
        if self._held_before - held:
            # What was kept for them was in no part: only the kernel knows it.
            self._touched.update(self.actual.everything())
        self._held_before = held
        return lingering

    def _part(self, name: str, host: Host) -> Part | None:
        entry = self.catalog.entry(name)
        if entry is None:
            return None
        lost = self.catalog.lost(name)
        try:
            if not self._detours.allot(detoured(entry.service)):
                self._without_anchor.add(name)
            return compile_service(entry, lost, host)
        except Exception:
            # A bug met by one service must not stop the others. What it served goes on, unless another has a claim.
            log.exception("service %s cannot be compiled", name)
            before = self.desired.parts.get(name, Part())
            why = "edgeproxy failed on this service, which is a bug: it is left as it was; see the log"
            finding = Finding(entry.key, entry.mod_revision, "", Reason.BUG, why)
            return msgspec.structs.replace(Part() if lost else before, findings=(finding,))

    def _forget_strays(self, arrived: frozenset[Address]) -> None:
        """Forget the flows that were opened while addresses were not delivered here.

        They went another way and are masqueraded for it; a client that tries again would go on to be so.
        """
        if not arrived:
            return
        passed = [frontend for frontend in self.desired.targets if frontend.address in arrived]
        if passed:
            forgotten = forget(self._wires.conntrack, (), self._anchors, passed)
            self.executor.counts["ForgetFlow", "done"] += forgotten

    def _reconcile(
        self, touched: Touched, drains: Mapping[Frontend, float], *, adopting: bool
    ) -> Iterator[None]:
        self._refused.forget(touched)
        connections: dict[Frontend, Mapping[Socket, int]] = {}
        for counted in self._mirror.count_connections(leaving(touched, self.desired, self.actual)):
            connections.update(counted)
            yield
        plan = self._planner(adopting=adopting).reconcile(touched, connections, drains)
        plan.add_drains.extend(self._lost_drains.items())
        self._lost_drains = {}
        yield from self._execute(plan)
        if plan.fading:
            yield from self._settle(dict(plan.fading))

    def _settle(self, drains: Mapping[Drain, float]) -> Iterator[None]:
        connections: dict[Frontend, Mapping[Socket, int]] = {}
        for counted in self._mirror.count_connections({drain.frontend for drain in drains}):
            connections.update(counted)
            yield
        plan = self._planner().settle(drains, connections, self._clock())
        if len(plan):
            in_doubt, self._in_doubt = self._in_doubt, True
            yield from self._execute(plan)
            self._in_doubt = in_doubt

    def _planner(self, *, adopting: bool = False) -> Planner:
        proxy = self._surroundings.proxy
        held = kernel_objects(self.catalog.held(), self.actual.elements.values(), proxy.anchor_cidrs)
        return Planner(self.desired, self.actual, proxy.drain, held, adopting=adopting)

    def _execute(self, plan: Plan) -> Iterator[None]:
        yield from self.executor.run(plan)
        tell(plan, self.desired.owners, self.catalog)
        self._refused.note_elements(self.executor.refused, self.catalog)
        vanished = self._refused.note(self.executor.failures, self.desired.owners, self.catalog)
        for frontend in vanished:
            self.actual.remove_server(frontend)
        self._touched.frontends.update(vanished)
        for frontend in self.actual.foreign.intersection(op.frontend for op in plan.ipvs):
            # Found out just now: it must not stay in the register.
            self._touched.elements.update(companions(frontend))

    # -- what depends on the books -------------------------------------------------------------

    def _wants_ipv6(self) -> bool:
        """Whether any service is served over IPv6 by endpoints somewhere else."""
        return self.desired.ipv6_targets > 0

    def _release_detours(self) -> None:
        if self._detours:
            elements = self.desired.elements.items()
            used = {element.key[0] for (name, _), element in elements if name in DETOUR_SETS}
            self._detours.release(
                external
                for external, at in [*self._detours.items()]
                if external not in used and not self.actual.serves_beyond(at)
            )
        self._dirty |= self._without_anchor
        self._without_anchor = set()

    def findings(self) -> tuple[Finding, ...]:
        """Everything an operator should know, sorted by key."""
        foreign = [
            self._foreign_finding(frontend) for frontend in self.actual.foreign & self.desired.targets.keys()
        ]
        compiled = (finding for part in self.desired.remarkable.values() for finding in part.findings)
        return tuple(
            sorted(
                {
                    *self.catalog.findings(),
                    *map(self.catalog.dated, (*compiled, *foreign, *self._refused.findings())),
                    *self._ownership.findings(),
                    *self._routes.findings(),
                    *self._proxies.findings(),
                    *self._tuning.findings(),
                    *self._coexistence.findings(self.desired.elements),
                    *self._surroundings.findings,
                }
            )
        )

    def _foreign_finding(self, frontend: Frontend) -> Finding:
        entry = self.catalog.entry(self.desired.owners[frontend])
        key, revision = (entry.key, entry.mod_revision) if entry else ("", 0)
        why = (
            f"virtual server {frontend} was made by another program: it is left alone and this service is "
            "not served there; remove it (ipvsadm -D) or choose another address or port"
        )
        return Finding(key, revision, "", Reason.FOREIGN_VIRTUAL_SERVER, why)

    def health_checks(self) -> dict[str, HealthCheck]:
        """The health check listener each service wants, by service."""
        return {n: p.health_check for n, p in self.desired.remarkable.items() if p.health_check}

    @property
    def health_hosts(self) -> tuple[str, ...]:
        """The addresses those listen on."""
        return self._surroundings.health_hosts
