"""The order of writes, what the mirror notes of them, and what belongs in one transaction."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.address import parse
from edgeproxy.books import Actual, Drain, key_of
from edgeproxy.execution import Executor, drain_element, drain_of, in_slices
from edgeproxy.kernel.ipvs_operations import AddReal, AddVirtual, EditVirtual, RemoveReal, RemoveVirtual
from edgeproxy.localroutes import LocalRoutes
from edgeproxy.model import Element, Frontend, Protocol, RealServer, SetName, VirtualServer
from edgeproxy.ownership import OwnershipLog
from edgeproxy.plan import Plan
from edgeproxy.surroundings import survey
from tests.fake_kernel import CrashError, FakeKernel
from tests.unit.site import FACTS, SCOPE, SETTINGS, finish

VIP = parse("10.96.0.10")
WEB = Frontend(VIP, Protocol.TCP, 80)
SERVER = VirtualServer(WEB, "rr")
REAL = RealServer(parse("10.1.1.2"), 8080)
REGISTER = Element(SetName.FRONTENDS4, (VIP, Protocol.TCP, 80), "cluster_ip4", comment="web")
DRAIN = Drain(WEB, (REAL.address, REAL.port))


class Bench:
    """An executor on an imaginary kernel."""

    def __init__(self, directory: Path) -> None:
        self.kernel = FakeKernel()
        self.kernel.addresses = FACTS.addresses
        self.actual = Actual()
        self.ownership = OwnershipLog(directory, SCOPE)
        self.ownership.rewrite([])
        wires = self.kernel.wires()
        wires.nft.load("the frame")
        anchors = SETTINGS.proxy.anchor_cidrs
        routes = LocalRoutes(wires.routes, survey(SETTINGS, FACTS))
        self.executor = Executor(wires, self.actual, self.ownership, routes, anchors, self.kernel.clock)

    def run(self, plan: Plan) -> None:
        finish(self.executor.run(plan))

    def held(self, name: SetName) -> list[Element]:
        return [element for element, _ in self.kernel.elements(name).values()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def opening() -> Plan:
    return Plan(
        add_routes=[parse("192.0.2.1")],
        add_elements=[REGISTER],
        ipvs=[AddVirtual(SERVER), AddReal(WEB, REAL)],
    )


def test_the_register_knows_a_virtual_server_before_it_exists(bench: Bench) -> None:
    bench.kernel.stop_after(2)
    with pytest.raises(CrashError):
        bench.run(opening())
    assert bench.kernel.routes
    assert bench.held(SetName.FRONTENDS4) == [REGISTER]
    assert bench.ownership.read() == {WEB}
    assert not bench.kernel.servers


def test_the_register_forgets_it_after_it_is_gone(bench: Bench) -> None:
    bench.run(opening())
    bench.kernel.stop_after(1)
    with pytest.raises(CrashError):
        bench.run(
            Plan(ipvs=[RemoveVirtual(WEB)], remove_elements=[REGISTER], remove_routes=[parse("192.0.2.1")])
        )
    assert not bench.kernel.servers
    assert bench.held(SetName.FRONTENDS4) == [REGISTER]
    assert bench.ownership.read() == {WEB}


def test_the_mirror_is_what_is_there(bench: Bench) -> None:
    bench.run(opening())
    assert bench.actual.servers == {WEB: SERVER}
    assert bench.actual.reals == {WEB: {(REAL.address, REAL.port): 1}}
    assert bench.actual.elements == {key_of(REGISTER): REGISTER}
    assert bench.actual.routes == {parse("192.0.2.1")}
    changed = Element(SetName.FRONTENDS4, REGISTER.key, "cluster_ip_silent4", comment="web")
    bench.run(
        Plan(add_elements=[changed], replaced=[REGISTER], ipvs=[RemoveReal(WEB, REAL.address, REAL.port)])
    )
    assert bench.actual.elements == {key_of(changed): changed}
    assert bench.held(SetName.FRONTENDS4) == [changed]
    assert bench.actual.reals == {WEB: {}}
    assert bench.executor.counts == {
        ("AddElement", "done"): 2,
        ("RemoveElement", "done"): 1,
        ("AddVirtual", "done"): 1,
        ("AddReal", "done"): 1,
        ("RemoveReal", "done"): 1,
    }


def test_a_deadline_is_in_the_kernel_and_in_the_mirror_alike(bench: Bench) -> None:
    bench.run(opening())
    bench.run(Plan(add_drains=[(DRAIN, 300.0)]))
    ((element, until),) = bench.kernel.elements(SetName.DRAINS4).values()
    assert (drain_of(element), until) == (DRAIN, 1300.0)
    assert bench.actual.drains == {DRAIN: 1300.0}
    bench.run(Plan(remove_drains=[DRAIN]))
    assert not bench.held(SetName.DRAINS4)
    assert not bench.actual.drains


def test_what_is_refused_is_told_and_not_noted(bench: Bench) -> None:
    bench.run(opening())
    bench.run(Plan(ipvs=[EditVirtual(VirtualServer(WEB, "nosuch"))]))
    (failure,) = bench.executor.failures
    assert failure.unknown_scheduler
    assert bench.actual.servers == {WEB: SERVER}
    assert bench.executor.counts["EditVirtual", "failed"] == 1
    bench.run(Plan())
    assert bench.executor.failures == []


def test_a_virtual_server_of_somebody_else_gets_nothing_and_is_not_claimed(bench: Bench) -> None:
    bench.kernel.make_foreign(VirtualServer(WEB, "sh"))
    bench.run(opening())
    assert bench.kernel.reals[WEB] == {}
    assert bench.actual.foreign == {WEB}
    assert bench.actual.servers == {}
    assert bench.ownership.read() == frozenset()


@pytest.mark.parametrize("address", ["10.96.0.10", "fd00:96::10"])
def test_drain_elements(address: str) -> None:
    drain = Drain(Frontend(parse(address), Protocol.TCP, 80), (parse(address), 8080))
    assert drain_of(drain_element(drain)) == drain


PLAIN = st.integers(0, 30).map(lambda port: Element(SetName.FRONTENDS4, (VIP, Protocol.TCP, port), "a"))
RANGE = st.tuples(st.integers(0, 3), st.integers(0, 9)).map(
    lambda at: Element(
        SetName.SOURCES4,
        (VIP, Protocol.TCP, at[0], parse(f"10.0.0.{at[1]}")),
        until=(VIP, Protocol.TCP, at[0], parse(f"10.0.0.{at[1]}")),
    )
)
ELEMENTS = st.lists(PLAIN | RANGE, max_size=20, unique_by=key_of)


@given(adds=ELEMENTS, removes=ELEMENTS, size=st.integers(1, 9))
def test_slices_hold_everything_once_and_keep_together_what_belongs_together(
    adds: list[Element], removes: list[Element], size: int
) -> None:
    slices = list(in_slices(adds, removes, size))
    for given_, which in ((adds, 0), (removes, 1)):
        found = [element for each in slices for element in each[which]]
        assert sorted(found, key=repr) == sorted(given_, key=repr)
    where: dict[object, set[int]] = {}
    for index, (coming, going) in enumerate(slices):
        assert coming or going
        for element in (*coming, *going):
            bundle = element.key[:-1] if element.until else element.key
            where.setdefault((element.set, bundle), set()).add(index)
    assert all(len(slices_) == 1 for slices_ in where.values())
    if not any(element.until for element in (*adds, *removes)):
        assert all(len(coming) + len(going) <= size + 1 for coming, going in slices)


def test_one_refused_element_keeps_no_other_out(bench: Bench) -> None:
    def ranged(first: str, last: str) -> Element:
        front = (VIP, Protocol.TCP, 80)
        return Element(SetName.SOURCES4, (*front, parse(first)), until=(*front, parse(last)), comment="web")

    there = ranged("10.0.0.0", "10.0.0.255")
    bench.run(Plan(add_elements=[there]))
    # It overlaps a range that nobody asked to take away.
    overlapping = ranged("10.0.0.128", "10.0.1.255")
    bench.run(Plan(add_elements=[overlapping, REGISTER], ipvs=[AddVirtual(SERVER)]))
    assert [element for element, _ in bench.executor.refused] == [overlapping]
    assert bench.held(SetName.FRONTENDS4) == [REGISTER]
    assert bench.held(SetName.SOURCES4) == [there]
    assert bench.actual.servers == {WEB: SERVER}
    assert key_of(overlapping) not in bench.actual.elements
