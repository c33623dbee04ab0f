"""The sum of all parts: kept step by step it equals the sum made anew, and tells all that differs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeproxy.address import parse
from edgeproxy.booking import enter
from edgeproxy.books import (
    Actual,
    Desired,
    Part,
    Target,
    Touched,
    companions,
    frontend_of,
    key_of,
)
from edgeproxy.kernel.ipvs_operations import AddReal
from edgeproxy.model import Element, Frontend, Protocol, RealServer, SetName, VirtualServer

NAMES = ("a", "b", "c")
SIX = parse("fd00:96::1")


def frontend(number: int, *, six: bool = False) -> Frontend:
    return Frontend(SIX if six else parse(f"10.96.0.{number}"), Protocol.TCP, 80)


def address_element(number: int, set_name: SetName = SetName.ADDRESSES4) -> Element:
    return Element(set_name, (parse(f"10.96.0.{number}"),))


@st.composite
def parts(draw: st.DrawFn, owner: int) -> Part:
    """A part; frontends are the owner's own, addresses and hairpin pairs may be anybody's."""
    target = st.builds(
        Target,
        st.builds(
            VirtualServer,
            st.builds(frontend, st.integers(owner * 10, owner * 10 + 1)),
            st.sampled_from(("rr", "wrr")),
        ),
        st.sampled_from(((), (RealServer(parse("10.1.1.2"), 80),))),
        st.just(300.0),
    )
    targets = draw(st.lists(target, max_size=2, unique_by=lambda t: t.server.frontend))
    shared = draw(st.lists(st.integers(0, 2), max_size=3, unique=True))
    register = [
        Element(SetName.FRONTENDS4, (t.server.frontend.address, Protocol.TCP, 80), verdict=draw(VERDICTS))
        for t in targets
    ]
    return Part(
        targets=tuple(targets),
        elements=(*register, *map(address_element, shared)),
        routes=tuple(
            parse(f"192.0.2.{n}") for n in draw(st.lists(st.integers(0, 2), max_size=2, unique=True))
        ),
    )


VERDICTS = st.sampled_from(("cluster_ip4", "cluster_ip_silent4"))
STEPS = st.lists(
    st.fixed_dictionaries({}, optional={n: parts(i) | st.none() for i, n in enumerate(NAMES)}), max_size=6
)


def contents(desired: Desired) -> tuple[object, ...]:
    return (
        desired.parts,
        desired.targets,
        desired.owners,
        desired.elements,
        dict(desired.routes),
        desired.ipv6_targets,
        {address for address in map(parse, ADDRESSES) if desired.serves(address)},
    )


ADDRESSES = [f"10.96.0.{n}" for n in range(30)]


def differing(before: Desired, after: Desired) -> Touched:
    """Everything that is not the same in two sums."""
    return Touched(
        {f for f in before.targets | after.targets if before.targets.get(f) != after.targets.get(f)},
        {k for k in before.elements | after.elements if before.elements.get(k) != after.elements.get(k)},
        {a for a in before.routes | after.routes if (a in before.routes) != (a in after.routes)},
    )


def built(present: dict[str, Part]) -> Desired:
    desired = Desired()
    desired.put(present)
    return desired


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_step_by_step_equals_made_anew_and_touches_what_differs(steps: list[dict[str, Part | None]]) -> None:
    desired, present = Desired(), dict[str, Part]()
    for step in steps:
        before = built(present)
        for name, part in step.items():
            present.pop(name, None)
            if part is not None:
                present[name] = part
        touched = desired.put(step)
        after = built(present)
        assert contents(desired) == contents(after)
        needed = differing(before, after)
        assert needed.frontends == touched.frontends, "each is one part's alone, so it is exact"
        assert needed.elements <= touched.elements
        assert needed.routes <= touched.routes
        changed = {n for n in step if before.parts.get(n) != after.parts.get(n)}
        mine = {
            key_of(e)
            for n in changed
            for book in (before, after)
            if n in book.parts
            for e in book.parts[n].elements
        }
        assert touched.elements <= mine, "nothing of a service that is as it was"


def test_the_same_part_again_touches_nothing() -> None:
    part = Part(
        targets=(Target(VirtualServer(frontend(1), "rr"), (), 1.0),),
        elements=(address_element(1),),
        routes=(parse("192.0.2.1"),),
    )
    desired = Desired()
    assert desired.put({"a": part})
    assert not desired.put({"a": part})
    assert not desired.put({"b": None})


def test_one_endpoint_touches_one_frontend_and_no_element() -> None:
    server, other = VirtualServer(frontend(1), "rr"), VirtualServer(frontend(2), "rr")
    elements = (address_element(1), address_element(2))
    desired = Desired()
    desired.put({"a": Part((Target(server, (), 1.0), Target(other, (), 1.0)), elements)})
    more = Target(server, (RealServer(parse("10.1.1.2"), 80),), 1.0)
    assert desired.put({"a": Part((more, Target(other, (), 1.0)), elements)}) == Touched({server.frontend})


def test_a_frontend_changes_hands_in_one_call() -> None:
    part = Part((Target(VirtualServer(frontend(1), "rr"), (), 1.0),))
    desired = Desired()
    desired.put({"a": part})
    desired.put({"b": part, "a": None})
    assert desired.owners == {frontend(1): "b"}


def test_virtual_servers_of_ipv6_count_once_they_have_real_servers() -> None:
    target = Target(VirtualServer(frontend(0, six=True), "rr"), (), 1.0)
    full = Target(target.server, (RealServer(parse("fd00::2"), 80),), 1.0)
    desired = Desired()
    for part, expected in ((Part((target,)), 0), (Part((full,)), 1), (Part((target,)), 0), (None, 0)):
        desired.put({"a": part})
        assert desired.ipv6_targets == expected


class TestActual:
    def test_what_serves_at_an_address(self) -> None:
        actual = Actual()
        one, other = frontend(1), Frontend(parse("10.96.0.1"), Protocol.UDP, 53)
        for each in (one, other):
            actual.set_server(VirtualServer(each, "rr"))
        assert actual.serves_beyond(one.address, 1)
        assert not actual.serves_beyond(one.address, 2)
        actual.set_server(VirtualServer(one, "wrr"))
        actual.remove_server(other)
        actual.remove_server(other)
        assert actual.serves_beyond(one.address)
        assert not actual.serves_beyond(one.address, 1)
        actual.forget_servers()
        assert not actual.serves_beyond(one.address)
        assert actual.everything() == Touched()

    def test_an_edit_keeps_the_real_servers(self) -> None:
        actual = Actual()
        actual.set_server(VirtualServer(frontend(1), "rr"))
        enter([AddReal(frontend(1), RealServer(parse("10.1.1.2"), 80, 4))], actual)
        actual.set_server(VirtualServer(frontend(1), "wrr"))
        assert actual.reals[frontend(1)] == {(parse("10.1.1.2"), 80): 4}
        actual.remove_real(frontend(1), (parse("10.1.1.2"), 80))
        actual.remove_real(frontend(9), (parse("10.1.1.2"), 80))
        assert actual.reals == {frontend(1): {}}


def test_companions_and_back() -> None:
    for each in (frontend(1), frontend(0, six=True)):
        register, *addresses = companions(each)
        assert frontend_of(register) == each
        assert [frontend_of(key) for key in addresses] == [None] * len(addresses)
        assert {key[1] for key in addresses} == {(each.address,)}
