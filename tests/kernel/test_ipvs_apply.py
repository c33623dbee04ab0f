"""Operations on a real IPVS: batches, their errors, and what "already so" means."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from edgeproxy.address import Address, parse
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.kernel.ipvs_operations import (
    AddReal,
    AddVirtual,
    EditReal,
    EditVirtual,
    Operation,
    RemoveReal,
    RemoveVirtual,
)
from edgeproxy.model import Frontend, Protocol, RealServer, VirtualServer
from tests.lab.kernel import load_ip_vs
from tests.native.conftest import netns, sh  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("netns")

T = TypeVar("T")
WEB = Frontend(parse("10.96.0.10"), Protocol.TCP, 80)
DNS = Frontend(parse("fd00::53"), Protocol.UDP, 53)
ONE, TWO = RealServer(parse("10.1.1.1"), 8080), RealServer(parse("10.1.1.2"), 8080)
SIX = RealServer(parse("fd00::1"), 53)


@pytest.fixture
def ipvs(netns: None) -> Iterator[Ipvs]:  # noqa: F811 - the fixture, not the import
    with Ipvs() as opened:
        yield opened


def held(ipvs: Ipvs) -> dict[VirtualServer | None, set[RealServer]]:
    return {
        state.server.virtual_server: {entry.real_server for entry in state.destinations}
        for state in ipvs.dump()
    }


def frontend(number: int) -> Frontend:
    return Frontend(Address(bytes((10, 97, number >> 8, number & 255))), Protocol.TCP, 80)


def test_the_life_of_a_server(ipvs: Ipvs) -> None:
    assert ipvs.apply([AddVirtual(VirtualServer(WEB, "wrr")), AddReal(WEB, ONE), AddReal(WEB, TWO)]) == []
    assert held(ipvs) == {VirtualServer(WEB, "wrr"): {ONE, TWO}}
    heavier = RealServer(ONE.address, ONE.port, 9)
    edited = VirtualServer(WEB, "mh", 60, 0x10)
    operations: list[Operation] = [
        EditVirtual(edited),
        EditReal(WEB, heavier),
        RemoveReal(WEB, TWO.address, TWO.port),
    ]
    assert ipvs.apply(operations) == []
    assert held(ipvs) == {edited: {heavier}}
    # Flags that are no longer wanted go away, too.
    assert ipvs.apply([EditVirtual(VirtualServer(WEB, "mh"))]) == []
    assert held(ipvs) == {VirtualServer(WEB, "mh"): {heavier}}
    assert ipvs.apply([RemoveVirtual(WEB)]) == []
    assert held(ipvs) == {}


def test_operations_may_be_repeated(ipvs: Ipvs) -> None:
    server = VirtualServer(WEB, "wrr")
    add: list[Operation] = [AddVirtual(server, adopt=True), AddReal(WEB, ONE), EditReal(WEB, TWO)]
    for _ in range(2):
        assert ipvs.apply(add) == []
        assert held(ipvs) == {server: {ONE, TWO}}
    remove: list[Operation] = [RemoveReal(WEB, ONE.address, ONE.port), RemoveVirtual(WEB)]
    for _ in range(2):
        assert ipvs.apply(remove) == []
        assert held(ipvs) == {}


def test_what_exists_gets_the_attributes_asked_for(ipvs: Ipvs) -> None:
    sh("ipvsadm", "-A", "-t", "10.96.0.10:80", "-s", "rr", "-p", "5")
    sh("ipvsadm", "-a", "-t", "10.96.0.10:80", "-r", "10.1.1.1:8080", "-m", "-w", "7", "-x", "3")
    server = VirtualServer(WEB, "wrr", 300)
    assert ipvs.apply([AddVirtual(server, adopt=True), AddReal(WEB, ONE)]) == []
    (state,) = ipvs.dump()
    assert state.server.virtual_server == server
    assert [(entry.real_server, entry.plain) for entry in state.destinations] == [(ONE, True)]


def test_a_server_of_somebody_else_is_left_alone(ipvs: Ipvs) -> None:
    sh("ipvsadm", "-A", "-t", "10.96.0.10:80", "-s", "rr")
    operations: list[Operation] = [
        AddVirtual(VirtualServer(WEB, "wrr")),
        AddReal(WEB, ONE),
        AddVirtual(VirtualServer(DNS, "wrr")),
        AddReal(DNS, SIX),
    ]
    failures = ipvs.apply(operations)
    assert [(failed.operation, failed.foreign) for failed in failures] == [
        (operations[0], True),
        (operations[1], True),
    ]
    assert failures[0].operation is operations[0]
    assert held(ipvs) == {VirtualServer(WEB, "rr"): set(), VirtualServer(DNS, "wrr"): {SIX}}


def test_an_unknown_scheduler_harms_nobody_else(ipvs: Ipvs) -> None:
    bad = VirtualServer(WEB, "nosuch")
    operations: list[Operation] = [
        AddVirtual(bad),
        AddReal(WEB, ONE),
        AddVirtual(VirtualServer(DNS, "wrr")),
        AddReal(DNS, SIX),
    ]
    for size in (1024, 1):
        failures = [failed for part in ipvs.apply_in_slices(operations, size) for failed in part]
        assert [(failed.operation, failed.unknown_scheduler, failed.vanished) for failed in failures] == [
            (AddVirtual(bad), True, False),
            (AddReal(WEB, ONE), False, True),
        ]
        assert "ip_vs_nosuch" in failures[0].message
        operations = operations[:2]
    assert held(ipvs) == {VirtualServer(DNS, "wrr"): {SIX}}
    (failed,) = ipvs.apply([EditVirtual(VirtualServer(DNS, "nosuch"))])
    assert failed.unknown_scheduler
    assert held(ipvs) == {VirtualServer(DNS, "wrr"): {SIX}}


@pytest.mark.parametrize(
    "scheduler", ["rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "mh", "fo", "ovf", "lblc", "lblcr"]
)
def test_scheduler_modules_are_loaded_by_name(ipvs: Ipvs, scheduler: str) -> None:
    assert ipvs.apply([AddVirtual(VirtualServer(WEB, scheduler)), AddReal(WEB, ONE)]) == []
    assert held(ipvs) == {VirtualServer(WEB, scheduler): {ONE}}


def test_errors_in_a_batch_name_their_operations(ipvs: Ipvs) -> None:
    good = [AddReal(WEB, RealServer(parse(f"10.1.2.{n}"), 80)) for n in range(1, 100)]
    bad = [AddReal(WEB, RealServer(parse(f"224.0.0.{n}"), 80)) for n in range(1, 100)]
    mixed: list[Operation] = [operation for pair in zip(good, bad, strict=True) for operation in pair]
    failures = ipvs.apply([AddVirtual(VirtualServer(WEB, "rr")), *mixed])
    assert [failed.operation for failed in failures] == bad
    assert {failed.errno for failed in failures} == {errno.EINVAL}
    (state,) = ipvs.dump()
    assert {entry.real_server for entry in state.destinations} == {operation.real for operation in good}


def test_a_server_that_is_gone_is_told(ipvs: Ipvs) -> None:
    operations: list[Operation] = [
        EditVirtual(VirtualServer(WEB, "rr")),
        AddReal(WEB, ONE),
        EditReal(WEB, ONE),
    ]
    failures = ipvs.apply(operations)
    assert [(failed.operation, failed.vanished) for failed in failures] == [(op, True) for op in operations]


def test_later_operations_win_over_follow_ups(ipvs: Ipvs) -> None:
    assert ipvs.apply([AddVirtual(VirtualServer(WEB, "rr")), AddReal(WEB, ONE)]) == []
    gone: list[Operation] = [AddReal(WEB, ONE), EditReal(WEB, TWO), RemoveReal(WEB, ONE.address, ONE.port)]
    assert ipvs.apply([*gone, RemoveReal(WEB, TWO.address, TWO.port)]) == []
    assert held(ipvs) == {VirtualServer(WEB, "rr"): set()}
    again: list[Operation] = [RemoveVirtual(WEB), AddVirtual(VirtualServer(WEB, "wrr")), AddReal(WEB, TWO)]
    assert ipvs.apply(again) == []
    assert held(ipvs) == {VirtualServer(WEB, "wrr"): {TWO}}


def test_a_run_that_is_left_has_done_whole_slices(ipvs: Ipvs) -> None:
    run = ipvs.apply_in_slices([AddVirtual(VirtualServer(frontend(n), "rr")) for n in range(20)], 5)
    assert next(run) == []
    assert len(ipvs.dump()) == 5
    assert next(run) == []
    assert len(ipvs.dump()) == 10


def test_batches_of_nothing_but_errors_fit_the_receive_buffer(ipvs: Ipvs) -> None:
    operations = [AddReal(frontend(n), ONE) for n in range(5000)]
    assert [failed.operation for failed in ipvs.apply(operations)] == operations


def test_without_the_right_to_it_the_first_refusal_ends_the_run(ipvs: Ipvs) -> None:
    script = (
        "from edgeproxy.kernel.ipvs import Ipvs\n"
        "from edgeproxy.kernel.ipvs_operations import RemoveVirtual\n"
        "from edgeproxy.kernel.netlink import RefusedError\n"
        "from edgeproxy.model import Frontend, Protocol\n"
        "try:\n"
        "    Ipvs().apply([RemoveVirtual(Frontend(bytes(4), Protocol.TCP, 1))])\n"
        "except RefusedError as error:\n"
        "    print(error)\n"
    )
    said = sh("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "python3", "-c", script)
    assert "CAP_NET_ADMIN" in said


def _timed(what: str, function: Callable[[], T]) -> T:
    began = time.monotonic()
    value = function()
    print(f"{what}: {time.monotonic() - began:.2f} s")
    return value


def test_four_thousand_servers(ipvs: Ipvs) -> None:
    """Prints times (see with `pytest -s`); about 16 times those of a machine that is not emulated."""
    operations: list[Operation] = []
    for number in range(4000):
        name = frontend(number)
        operations.append(AddVirtual(VirtualServer(name, "wrr")))
        operations += (
            AddReal(name, RealServer(Address(bytes((10, 1, n, number & 255))), 80)) for n in range(10)
        )
    slices = _timed("make 4,000 x 10", lambda: list(ipvs.apply_in_slices(operations)))
    assert not any(slices)
    states = _timed("read 4,000 x 10", ipvs.dump)
    assert len(states) == 4000
    assert sum(len(state.destinations) for state in states) == 40000
    hundred = [frontend(number) for number in range(100)]
    assert len(_timed("read 100 x 10", lambda: ipvs.dump_frontends(hundred))) == 100
    one = AddReal(frontend(0), RealServer(parse("10.2.0.1"), 80))
    assert _timed("one endpoint", lambda: ipvs.apply([one])) == []
    began, longest = time.monotonic(), 0.0
    for failures in ipvs.apply_in_slices([RemoveVirtual(frontend(number)) for number in range(4000)]):
        longest = max(longest, time.monotonic() - began)
        began = time.monotonic()
        assert failures == []
    print(f"remove 4,000: longest slice {longest * 1000:.0f} ms")
    assert ipvs.dump() == []


def test_the_module_may_be_unloaded_and_loaded_again(ipvs: Ipvs) -> None:
    """The generic netlink family has another number then, and ENOENT is all the kernel says."""
    loaded = [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]
    modules = [name for name in loaded if name.startswith("ip_vs_")]
    if "ip_vs" not in loaded:
        pytest.skip("ip_vs is built in")
    done = subprocess.run(["modprobe", "-r", *modules, "ip_vs"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"ip_vs is in use elsewhere: {done.stderr.strip()}")
    load_ip_vs()
    assert ipvs.apply([AddVirtual(VirtualServer(WEB, "rr")), AddReal(WEB, ONE)]) == []
    assert held(ipvs) == {VirtualServer(WEB, "rr"): {ONE}}
    assert ipvs.dump_frontend(WEB) is not None
