"""Plans: from any state to any other, in an order that no crash can spoil, and nothing without need."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeproxy.address import Address, parse
from edgeproxy.booking import enter
from edgeproxy.books import (
    Actual,
    Desired,
    Drain,
    Part,
    Socket,
    Target,
    Touched,
    companions,
    differing,
    frontend_of,
    key_of,
)
from edgeproxy.kernel.ipvs_operations import (
    AddReal,
    AddVirtual,
    EditReal,
    EditVirtual,
    RemoveReal,
    RemoveVirtual,
)
from edgeproxy.model import Element, Frontend, Protocol, RealServer, SetName, VirtualServer
from edgeproxy.plan import LINGER, Held, Plan, Planner, Stale, leaving

TCP, UDP = Protocol.TCP, Protocol.UDP
VIP = parse("10.96.0.10")
WEB, DNS = Frontend(VIP, TCP, 80), Frontend(VIP, UDP, 53)
A, B, C = (RealServer(parse(f"10.1.{n}.2"), 8080) for n in (1, 2, 3))
DRAIN = 300.0
NONE = Held()


def socket(real: RealServer) -> Socket:
    return (real.address, real.port)


def register(frontend: Frontend, verdict: str = "cluster_ip4", comment: str = "web") -> Element:
    return Element(
        companions(frontend)[0][0],
        (frontend.address, frontend.protocol, frontend.port),
        verdict,
        comment=comment,
    )


def address(of: Address) -> Element:
    return Element(SetName.ADDRESSES4, (of,))


def part(frontend: Frontend, *reals: RealServer, scheduler: str = "rr", drain: float = DRAIN) -> Part:
    target = Target(VirtualServer(frontend, scheduler), tuple(sorted(reals)), drain)
    return Part((target,), (register(frontend), address(frontend.address)), (frontend.address,))


def desired(*parts: Part) -> Desired:
    book = Desired()
    book.put({str(index): each for index, each in enumerate(parts)})
    return book


def run(plan: Plan, actual: Actual, now: float = 0.0) -> Actual:
    """Do what a plan says to a book of actual state."""
    for element in plan.replaced:
        actual.elements.pop(key_of(element), None)
    actual.elements.update((key_of(element), element) for element in plan.add_elements)
    actual.drains.update((drain, now + seconds) for drain, seconds in plan.add_drains)
    for operation in plan.ipvs:
        match operation:
            case AddVirtual(server):
                assert server.frontend not in actual.servers
                actual.set_server(server)
            case EditVirtual(server):
                assert server.frontend in actual.servers
                actual.set_server(server)
            case RemoveVirtual(frontend):
                assert frontend in actual.servers
                actual.remove_server(frontend)
            case AddReal(frontend, real) | EditReal(frontend, real):
                assert (socket(real) in actual.reals[frontend]) == isinstance(operation, EditReal)
                enter([AddReal(frontend, real)], actual)
            case RemoveReal(frontend, at, port):
                actual.remove_real(frontend, (at, port))
    for drain in plan.remove_drains:
        del actual.drains[drain]
    for element in plan.remove_elements:
        del actual.elements[key_of(element)]
    actual.routes.update(plan.add_routes)
    actual.routes.difference_update(plan.remove_routes)
    return actual


def reached(*parts: Part) -> Actual:
    """The actual state once these are wanted and done."""
    book, actual = desired(*parts), Actual()
    run(plan_for(book, actual), actual)
    return actual


def plan_for(
    book: Desired, actual: Actual, held: Held = NONE, *, adopting: bool = False, each: int | None = None
) -> Plan:
    """A plan of everything. each: how many connections each real server has, None: not counted."""
    everything = Touched(set(book.targets), set(book.elements), set(book.routes))
    everything.update(actual.everything())
    connections = {
        frontend: dict.fromkeys(reals, each) for frontend, reals in actual.reals.items() if each is not None
    }
    plan, of_differences = (
        Planner(book, actual, DRAIN, held, adopting=adopting).reconcile(touched, connections, {})
        for touched in (everything, differing(book, actual))
    )
    assert sorted(of_differences.lines()) == sorted(plan.lines())
    return plan


FRONTENDS = st.sampled_from([Frontend(parse(f"10.96.0.{n}"), p, 80) for n in (1, 2) for p in (TCP, UDP)])
REALS = st.lists(
    st.builds(RealServer, st.sampled_from([r.address for r in (A, B, C)]), st.just(80), st.integers(0, 2)),
    max_size=3,
    unique_by=lambda real: real.address,
)
PARTS = st.lists(
    st.builds(
        lambda frontend, reals, scheduler, drain: part(frontend, *reals, scheduler=scheduler, drain=drain),
        FRONTENDS,
        REALS,
        st.sampled_from(["rr", "wrr"]),
        st.sampled_from([0.0, DRAIN]),
    ),
    max_size=4,
    unique_by=lambda each: each.targets[0].server.frontend,
)


def is_reached(book: Desired, actual: Actual) -> None:
    """All that is wanted is there; what is there beside has a drain."""
    for frontend, target in book.targets.items():
        assert actual.servers[frontend] == target.server
        for real in target.reals:
            assert actual.reals[frontend][socket(real)] == real.weight
            assert Drain(frontend, socket(real)) not in actual.drains
    for frontend, reals in actual.reals.items():
        wanted = (
            {socket(real) for real in book.targets[frontend].reals} if frontend in book.targets else set()
        )
        for each in reals.keys() - wanted:
            assert reals[each] == 0
            assert Drain(frontend, each) in actual.drains
        assert reals or frontend in book.targets
    assert actual.elements.items() >= book.elements.items()
    assert set(actual.servers) == {frontend_of(key) for key in actual.elements} - {None}
    addresses = {frontend.address for frontend in actual.servers}
    assert addresses == {key[1][0] for key in actual.elements if key[0] is SetName.ADDRESSES4}
    assert addresses == actual.routes


class TestAnyState:
    @settings(max_examples=200, deadline=None)
    @given(states=st.lists(PARTS, min_size=1, max_size=3), busy=st.booleans())
    def test_is_reached_from_any_other_and_needs_nothing_more(
        self, states: list[list[Part]], busy: bool
    ) -> None:
        actual = Actual()
        for parts in states:
            book = desired(*parts)
            plan = run_with_fading(book, actual, each=int(busy))
            is_reached(book, plan)
            assert len(plan_for(book, actual, each=int(busy))) == 0
        everything = dict.fromkeys(actual.drains, DRAIN)
        run(Planner(book, actual, DRAIN, Held()).settle(everything, {}, DRAIN), actual)
        assert not actual.drains
        assert actual.servers.keys() == book.targets.keys()
        assert actual.elements == book.elements
        is_reached(book, actual)

    @settings(max_examples=100, deadline=None)
    @given(before=PARTS, after=PARTS)
    def test_only_touched_keys_are_looked_at(self, before: list[Part], after: list[Part]) -> None:
        book, actual = desired(*before), reached(*before)
        names = {str(i): after[i] if i < len(after) else None for i in range(max(len(before), len(after)))}
        touched = book.put(names)
        part_plan = Planner(book, actual, DRAIN, Held()).reconcile(touched, {}, {})
        assert sorted(part_plan.lines()) == sorted(plan_for(book, actual).lines())


def run_with_fading(book: Desired, actual: Actual, each: int) -> Actual:
    """A plan, and the settling that follows at once for what seemed idle."""
    plan = plan_for(book, actual, each=each)
    run(plan, actual)
    counted = {frontend: dict.fromkeys(reals, each) for frontend, reals in actual.reals.items()}
    return run(Planner(book, actual, DRAIN, Held()).settle(dict(plan.fading), counted, 0.0), actual)


class TestDrain:
    def test_a_busy_tcp_real_server_gets_weight_0_and_a_deadline_before(self) -> None:
        plan = plan_for(desired(part(WEB, A)), reached(part(WEB, A, B)), each=1)
        assert plan.ipvs == [EditReal(WEB, RealServer(*socket(B), 0), "no longer an endpoint: draining")]
        assert plan.add_drains == [(Drain(WEB, socket(B)), DRAIN)]
        assert plan.stale == [Stale(WEB, socket(B))]

    def test_an_idle_one_gets_weight_0_and_is_looked_at_again(self) -> None:
        plan = plan_for(desired(part(WEB, A)), reached(part(WEB, A, B)), each=0)
        assert (plan.add_drains, plan.fading) == ([], [(Drain(WEB, socket(B)), DRAIN)])

    @pytest.mark.parametrize(("busy", "removed"), [(0, True), (3, False)])
    def test_the_second_look_decides(self, busy: int, removed: bool) -> None:
        book, actual = desired(part(WEB, A)), reached(part(WEB, A, B))
        drain = Drain(WEB, socket(B))
        plan = Planner(book, actual, DRAIN, Held()).settle({drain: 7.0}, {WEB: {socket(B): busy}}, 0.0)
        assert bool(plan.ipvs) == removed
        assert plan.add_drains == ([] if removed else [(drain, 7.0)])

    @pytest.mark.parametrize(("protocol", "seconds"), [(UDP, DRAIN), (Protocol.SCTP, DRAIN), (TCP, 0.0)])
    def test_what_goes_at_once(self, protocol: Protocol, seconds: float) -> None:
        frontend = Frontend(VIP, protocol, 80)
        book = desired(part(frontend, A, drain=seconds))
        plan = plan_for(book, reached(part(frontend, A, B)), each=1)
        assert plan.ipvs == [RemoveReal(frontend, *socket(B), "no longer an endpoint")]
        assert (plan.add_drains, plan.fading) == ([], [])

    def test_one_that_was_taken_down_before_a_crash_is_over_when_adopted(self) -> None:
        actual = reached(part(WEB, A, B))
        enter([AddReal(WEB, RealServer(*socket(B), 0))], actual)
        assert isinstance(plan_for(desired(part(WEB, A)), actual, adopting=True).ipvs[0], RemoveReal)
        assert plan_for(desired(part(WEB, A)), actual).add_drains == [(Drain(WEB, socket(B)), DRAIN)]

    def test_a_drain_under_way_is_not_begun_again(self) -> None:
        actual = reached(part(WEB, A, B))
        enter([AddReal(WEB, RealServer(*socket(B), 0))], actual)
        actual.drains[Drain(WEB, socket(B))] = 5.0
        assert len(plan_for(desired(part(WEB, A)), actual, adopting=True)) == 0

    def test_a_drain_that_a_crash_kept_from_beginning_begins(self) -> None:
        actual = reached(part(WEB, A, B))
        actual.drains[Drain(WEB, socket(B))] = 5.0
        plan = plan_for(desired(part(WEB, A)), actual, adopting=True)
        assert plan.ipvs == [EditReal(WEB, RealServer(*socket(B), 0), "no longer an endpoint: draining")]
        assert plan.add_drains == []

    def test_a_drain_of_what_is_no_longer_there_is_forgotten(self) -> None:
        actual = reached(part(WEB, A))
        drain = Drain(WEB, socket(B))
        actual.drains[drain] = 5.0
        plan = Planner(desired(part(WEB, A)), actual, DRAIN, Held()).settle({drain: DRAIN}, {}, 0.0)
        assert (plan.remove_drains, plan.ipvs) == ([drain], [])

    def test_an_idle_virtual_server_goes_whole_in_the_end(self) -> None:
        actual = reached(part(WEB, A, B))
        drains = [Drain(WEB, socket(each)) for each in (A, B)]
        actual.drains.update(dict.fromkeys(drains, 5.0))
        plan = Planner(desired(), actual, DRAIN, Held()).settle(dict.fromkeys(drains, DRAIN), {}, 5.0)
        assert plan.ipvs == [RemoveVirtual(WEB, "no longer wanted by any record")]
        assert plan.remove_elements == [register(WEB), address(VIP)]
        assert plan.remove_routes == [VIP]

    def test_leaving(self) -> None:
        actual = reached(part(WEB, A, B), part(DNS, A))
        touched = Touched({WEB, DNS, Frontend(VIP, TCP, 1)})
        assert leaving(touched, desired(part(WEB, A)), actual) == [WEB]
        assert leaving(touched, desired(part(WEB, A, B, C)), actual) == []
        assert leaving(touched, desired(), actual) == [WEB]


class TestStale:
    def test_udp_flows_from_before_the_first_backend(self) -> None:
        assert plan_for(desired(part(DNS, A)), Actual()).stale == [Stale(DNS, None)]
        assert plan_for(desired(part(DNS, A)), reached(part(DNS))).stale == [Stale(DNS, None)]
        assert plan_for(desired(part(DNS, A, B)), reached(part(DNS, A))).stale == []
        assert plan_for(desired(part(WEB, A)), reached(part(WEB))).stale == []

    def test_a_weight_of_0_from_the_record(self) -> None:
        down = RealServer(*socket(A), 0)
        plan = plan_for(desired(part(WEB, down)), reached(part(WEB, A)))
        assert plan.stale == [Stale(WEB, socket(A))]
        assert plan.add_drains == []
        plan = plan_for(desired(part(DNS, down)), reached(part(DNS, A)))
        assert plan.stale == [], "it serves: UDP flows to it are kept"


class TestServingUdp:
    """A backend of UDP that is not wanted for new flows, but serves those it has."""

    def target(self, *serving: RealServer) -> Part:
        base = part(DNS, A)
        target = msgspec.structs.replace(base.targets[0], serving=frozenset(map(socket, serving)))
        return msgspec.structs.replace(base, targets=(target,))

    def test_drains_and_keeps_its_flows(self) -> None:
        plan = plan_for(desired(self.target(A, B)), reached(part(DNS, A, B)))
        assert plan.ipvs == [EditReal(DNS, RealServer(*socket(B), 0), "no longer an endpoint: draining")]
        assert plan.add_drains == [(Drain(DNS, socket(B)), LINGER)]
        assert plan.stale == []

    def test_goes_when_it_serves_no_more(self) -> None:
        actual = reached(part(DNS, A, B))
        enter([AddReal(DNS, RealServer(*socket(B), 0))], actual)
        actual.drains[Drain(DNS, socket(B))] = 5.0
        assert len(plan_for(desired(self.target(A, B)), actual, adopting=True)) == 0
        plan = plan_for(desired(self.target(A)), actual)
        assert [type(operation) for operation in plan.ipvs] == [RemoveReal]
        assert plan.remove_drains == [Drain(DNS, socket(B))]
        assert plan.stale == [Stale(DNS, socket(B))]

    def test_is_not_made_for_it(self) -> None:
        assert plan_for(desired(self.target(A, B)), reached(part(DNS, A))).ipvs == []


class TestForeign:
    def test_is_left_alone_and_out_of_the_register(self) -> None:
        actual = Actual()
        actual.foreign.add(WEB)
        plan = plan_for(desired(part(WEB, A), part(DNS, A)), actual)
        assert {op.frontend for op in plan.ipvs} == {DNS}
        assert register(WEB) not in plan.add_elements

    def test_leaves_the_register_if_it_is_there(self) -> None:
        actual = reached(part(WEB, A))
        actual.remove_server(WEB)
        actual.foreign.add(WEB)
        assert plan_for(desired(part(WEB, A)), actual).remove_elements == [register(WEB)]


class TestHeld:
    def test_nothing_of_a_held_service_shrinks(self) -> None:
        actual = reached(part(WEB, A, B))
        hairpin = Element(SetName.HAIRPIN4, (A.address, A.address))
        actual.elements[key_of(hairpin)] = hairpin
        plan = plan_for(desired(), actual, Held(frozenset({"web"}), frozenset({WEB})))
        assert len(plan) == 0

    def test_it_may_grow(self) -> None:
        actual = reached(part(WEB, A))
        plan = plan_for(desired(part(WEB, B)), actual, Held(frozenset({"web"}), frozenset({WEB})))
        assert plan.ipvs == [AddReal(WEB, B, "new endpoint")]


class TestElements:
    def test_a_new_value_replaces_the_old_one(self) -> None:
        actual = reached(part(WEB, A))
        old = register(WEB, "cluster_ip_silent4")
        actual.elements[key_of(old)] = old
        plan = plan_for(desired(part(WEB, A)), actual)
        assert (plan.replaced, plan.add_elements, plan.remove_elements) == ([old], [register(WEB)], [])

    def test_ranges_leave_before_others_come(self) -> None:
        old, new = (
            Element(SetName.SOURCES4, (VIP, TCP, 80, parse(first)), until=(VIP, TCP, 80, parse(last)))
            for first, last in (("10.0.0.0", "10.255.255.255"), ("10.1.0.0", "10.1.255.255"))
        )
        actual = Actual()
        actual.elements[key_of(old)] = old
        plan = plan_for(desired(Part(elements=(new,))), actual)
        assert (plan.replaced, plan.add_elements, plan.remove_elements) == ([old], [new], [])
        assert len(plan) == 2

    def test_an_address_the_host_has_come_to_own(self) -> None:
        wanted = Part(part(WEB, A).targets, (register(WEB),))
        plan = plan_for(desired(wanted), reached(part(WEB, A)))
        assert plan.remove_elements == [address(VIP)]
        assert plan.remove_routes == [VIP]


def test_a_plan_prints() -> None:
    text = str(plan_for(desired(part(WEB, A)), reached(part(DNS, B)), each=1))
    assert text.splitlines() == [
        "add element to frontends4",
        "add virtual server tcp/10.96.0.10:80 rr",
        "add real server 10.1.1.2:8080 weight 1 to tcp/10.96.0.10:80",
        "remove virtual server udp/10.96.0.10:53",
        "remove element from frontends4",
    ]
