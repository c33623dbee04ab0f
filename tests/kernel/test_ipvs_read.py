"""What is read from IPVS, against what ipvsadm says of the same state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeproxy.address import Address, parse, text, with_port
from edgeproxy.kernel import ipvs as reader
from edgeproxy.kernel.ipvs import Ipvs, Weighed
from edgeproxy.kernel.ipvs_entries import (
    AF_INET,
    AF_INET6,
    DISTORTED,
    DestinationEntry,
    Timeouts,
    VirtualServerEntry,
    VirtualServerState,
)
from edgeproxy.kernel.ipvs_operations import AddReal, AddVirtual, EditVirtual, Operation, RemoveVirtual
from edgeproxy.kernel.netlink import RefusedError
from edgeproxy.model import Frontend, Protocol, RealServer, VirtualServer
from tests.kernel.engine import Site
from tests.lab.wait import TooLate, until
from tests.native.conftest import netns, sh  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("netns")

WEB = Frontend(parse("10.96.0.10"), Protocol.TCP, 8000)

# Made with `ipvsadm -R`: every kind of service and destination, as `ipvsadm -Sn` prints them.
RULES = """\
-A -t 10.96.0.10:8000 -s wrr
-a -t 10.96.0.10:8000 -r 10.1.1.2:80 -m -w 3
-a -t 10.96.0.10:8000 -r 10.1.1.3:8000 -g -w 0
-a -t 10.96.0.10:8000 -r 10.1.1.4:8000 -i -w 7 --tun-type gue --tun-port 6080 --tun-nocsum
-a -t 10.96.0.10:8000 -r 10.1.1.5:8000 -i -w 65535 --tun-type gre --tun-csum
-A -u 10.96.0.11:53 -s rr -p 10800 -M 255.255.255.0
-A -u 10.96.0.12:5060 -s rr -p 300 --pe sip -o
-A --sctp-service 10.96.0.13:7777 -s lc
-a --sctp-service 10.96.0.13:7777 -r 10.1.1.2:7777 -m -w 1
-A -t [fd00::10]:443 -s mh -p 60 -M 64 -b mh-fallback,mh-port
-a -t [fd00::10]:443 -r [fd00::2]:8443 -m -w 5
-A -f 7 -s sh -b sh-port
-a -f 7 -r 10.1.1.9:0 -g -w 1
-A -f 8 -6 -s wlc -p 360
"""

FORWARDING = {0: "-m", 2: "-i", 3: "-g"}
TUNNELS = {0: "ipip", 1: "gue", 2: "gre"}


def _named(server: VirtualServerEntry) -> str:
    if server.fwmark:
        return f"-f {server.fwmark}"
    option = {6: "-t", 17: "-u", 132: "--sctp-service"}[server.protocol]
    return f"{option} {with_port(server.address, server.port)}"


def _rule(server: VirtualServerEntry) -> str:
    words = [f"-A {_named(server)}"]
    if server.fwmark and server.family == AF_INET6:
        words.append("-6")
    words.append(f"-s {server.scheduler}")
    if server.flags & 0x01:
        words.append(f"-p {server.timeout}")
        if server.family == AF_INET and server.netmask != 0xFFFFFFFF:
            words.append(f"-M {text(parse(_dotted(server.netmask)))}")
        if server.family == AF_INET6 and server.netmask != 128:
            words.append(f"-M {server.netmask}")
    if server.persistence_engine:
        words.append(f"--pe {server.persistence_engine}")
    if server.flags & 0x04:
        words.append("-o")
    prefix = server.scheduler
    flags = [f"{prefix}-fallback"] * bool(server.flags & 0x08) + [f"{prefix}-port"] * bool(
        server.flags & 0x10
    )
    if flags:
        words.append(f"-b {','.join(flags)}")
    return " ".join(words)


def _dotted(number: int) -> str:
    return ".".join(str(byte) for byte in number.to_bytes(4, "big"))


def _destination_rule(server: VirtualServerEntry, entry: DestinationEntry) -> str:
    words = [
        f"-a {_named(server)} -r {with_port(entry.address, entry.port)}",
        FORWARDING[entry.forwarding],
        f"-w {entry.weight}",
    ]
    if entry.tunnel_type:
        words.append(f"--tun-type {TUNNELS[entry.tunnel_type]}")
        if entry.tunnel_port:
            words.append(f"--tun-port {entry.tunnel_port}")
        words.append("--tun-csum" if entry.tunnel_flags & 1 else "--tun-nocsum")
    return " ".join(words)


def rules(states: list[VirtualServerState]) -> list[str]:
    """The state as `ipvsadm -Sn` prints it, sorted."""
    return sorted(
        rule
        for state in states
        for rule in (_rule(state.server), *(_destination_rule(state.server, d) for d in state.destinations))
    )


def in_use() -> int:
    """How often schedulers are in use: the virtual servers of all namespaces together."""
    return sum(int(count.read_text()) for count in Path("/sys/module").glob("ip_vs_*/refcnt"))


@pytest.fixture
def ipvs(netns: None) -> Iterator[Ipvs]:  # noqa: F811 - the fixture, not the import
    # The kernel empties the namespaces of earlier tests in its own time, and a dump meanwhile may miss some.
    with Ipvs() as opened:
        # Where others on this machine use IPVS there are always some.
        with contextlib.suppress(TooLate):
            until(lambda: not in_use(), 10, "the virtual servers of earlier tests are gone")
        yield opened


def test_everything_ipvsadm_can_make_is_read(ipvs: Ipvs) -> None:
    sh("ipvsadm", "-R", script=RULES)
    printed = sh("ipvsadm", "-Sn").splitlines()
    assert rules(ipvs.dump()) == sorted(printed)
    assert sorted(printed) == sorted(RULES.splitlines())
    assert rules(ipvs.dump(statistics=True)) == sorted(printed)
    assert in_slices(ipvs) == weighed(ipvs.dump())


def test_everything_we_make_is_what_ipvsadm_prints(ipvs: Ipvs) -> None:
    six = Frontend(parse("fd00::10"), Protocol.UDP, 53)
    sctp = Frontend(parse("10.96.0.13"), Protocol.SCTP, 7777)
    failed = ipvs.apply(
        [
            AddVirtual(VirtualServer(WEB, "wrr")),
            AddReal(WEB, RealServer(parse("10.1.1.2"), 80, 3)),
            AddReal(WEB, RealServer(parse("10.1.1.3"), 8000, 0)),
            AddVirtual(VirtualServer(six, "mh", 10800, 0x18)),
            AddReal(six, RealServer(parse("fd00::2"), 5353, 65535)),
            AddVirtual(VirtualServer(sctp, "sh", flags=0x10)),
        ]
    )
    assert failed == []
    assert sorted(sh("ipvsadm", "-Sn").splitlines()) == [
        "-A --sctp-service 10.96.0.13:7777 -s sh -b sh-port",
        "-A -t 10.96.0.10:8000 -s wrr",
        "-A -u [fd00::10]:53 -s mh -p 10800 -b mh-fallback,mh-port",
        "-a -t 10.96.0.10:8000 -r 10.1.1.2:80 -m -w 3",
        "-a -t 10.96.0.10:8000 -r 10.1.1.3:8000 -m -w 0",
        "-a -u [fd00::10]:53 -r [fd00::2]:5353 -m -w 65535",
    ]
    assert all(state.server.plain for state in ipvs.dump())
    assert all(entry.plain for state in ipvs.dump() for entry in state.destinations)


def test_thresholds_are_read(ipvs: Ipvs) -> None:
    sh("ipvsadm", "-A", "-t", "10.96.0.10:8000", "-s", "rr")
    sh("ipvsadm", "-a", "-t", "10.96.0.10:8000", "-r", "10.1.1.2:80", "-m", "-x", "100", "-y", "50")
    state = ipvs.dump_frontend(WEB)
    assert state is not None
    (entry,) = state.destinations
    assert (entry.upper, entry.lower, entry.plain) == (100, 50, False)


def test_an_edit_makes_a_distorted_server_plain(ipvs: Ipvs) -> None:
    sh("ipvsadm", "-A", "-t", "10.96.0.10:8000", "-s", "rr", "-p", "77", "-M", "255.255.0.0")
    wanted = VirtualServer(WEB, "wrr", 300)
    before = ipvs.dump_frontend(WEB)
    assert before is not None
    assert not before.server.plain
    assert ipvs.apply([EditVirtual(wanted)]) == []
    after = ipvs.dump_frontend(WEB)
    assert after is not None
    assert after.server.plain
    assert after.server.virtual_server == wanted


def test_some_frontends_are_read(ipvs: Ipvs) -> None:
    sh("ipvsadm", "-R", script=RULES)
    missing = Frontend(parse("10.96.0.99"), Protocol.TCP, 1)
    six = Frontend(parse("fd00::10"), Protocol.TCP, 443)
    found = ipvs.dump_frontends([missing, WEB, six])
    assert found == {
        state.server.frontend: state for state in ipvs.dump() if state.server.frontend in (WEB, six)
    }
    assert ipvs.dump_frontend(missing) is None
    assert ipvs.connections(missing) == {}
    assert ipvs.connections(six) == {(parse("fd00::2"), 8443): (0, 0)}


def test_more_destinations_than_fit_in_a_datagram(ipvs: Ipvs) -> None:
    reals = [RealServer(parse(f"10.1.{n >> 8}.{n & 255}"), 80, n) for n in range(1, 1001)]
    assert ipvs.apply([AddVirtual(VirtualServer(WEB, "wrr")), *(AddReal(WEB, real) for real in reals)]) == []
    for statistics in (False, True):
        (state,) = ipvs.dump(statistics=statistics)
        assert {entry.real_server for entry in state.destinations} == set(reals)
        assert len(state.destinations) == len(reals)


def test_nothing_is_nothing(ipvs: Ipvs) -> None:
    assert ipvs.dump() == []
    assert list(ipvs.read_in_slices()) == [[]]
    assert ipvs.dump_frontends([]) == {}


def test_timeouts_and_information(ipvs: Ipvs) -> None:
    before = ipvs.timeouts()
    ipvs.set_timeouts(Timeouts(tcp=901, udp=301))
    assert ipvs.timeouts() == Timeouts(901, before.tcp_fin, 301)
    assert sh("ipvsadm", "-Ln", "--timeout").strip() == f"Timeout (tcp tcpfin udp): 901 {before.tcp_fin} 301"
    with pytest.raises(RefusedError, match="Invalid argument"):
        ipvs.set_timeouts(Timeouts(tcp=30_000_000))
    information = ipvs.information()
    assert f"version {information.version} (size={information.connection_table_size})" in sh("ipvsadm", "-Ln")


# -- all of it, in slices ----------------------------------------------------------------------

HUGE = Frontend(parse("10.96.0.20"), Protocol.UDP, 53)

# Beside RULES: what one line cannot tell, and families that are mixed.
MORE_RULES = """\
-A -u [fd00::11]:53 -s rr
-a -u [fd00::11]:53 -r 10.1.1.2:53 -i -w 1
-A -t 10.96.0.14:80 -s wlc
-a -t 10.96.0.14:80 -r 10.1.1.2:80 -m -w 1
-a -t 10.96.0.14:80 -r 10.1.1.3:80 -g -w 1
-A -f 9 -6 -s wlc
-a -f 9 -6 -r [fd00::3]:0 -m -w 1
"""


def many(first: int, count: int) -> list[Operation]:
    """Virtual servers of both families and all protocols, 0 to 4 real servers each."""
    operations: list[Operation] = []
    for number in range(first, first + count):
        four = number % 3 > 0
        prefix = bytes((10, 97)) if four else parse("fd00:97::")[:14]
        protocol = list(Protocol)[number % 7 % 3]
        frontend = Frontend(Address(prefix + number.to_bytes(2)), protocol, 1000 + number)
        operations.append(AddVirtual(VirtualServer(frontend, "wrr", 60 * (number % 2))))
        for at in range(number % 5):
            backend = parse(f"10.1.{number >> 8}.{number & 255}" if four else f"fd00:1::{number:x}")
            operations.append(AddReal(frontend, RealServer(backend, 8000 + at, at * number * 1000)))
    return operations


def everything(told: list[Weighed]) -> dict[object, Weighed]:
    """By what names a virtual server. Raises: one is there twice."""
    found: dict[object, Weighed] = {(server.frontend, server.fwmark): (server, w) for server, w in told}
    assert len(found) == len(told)
    return found


def weighed(states: list[VirtualServerState]) -> dict[object, Weighed]:
    return everything([(state.server, state.weights) for state in states])


def in_slices(ipvs: Ipvs) -> dict[object, Weighed]:
    return everything([each for part in ipvs.read_in_slices() for each in part])


def without_listing(ipvs: Ipvs, patch: pytest.MonkeyPatch) -> dict[object, Weighed]:
    with patch.context() as patched:
        patched.setattr(ipvs, "_listing", None)
        return in_slices(ipvs)


def asked(ipvs: Ipvs, patch: pytest.MonkeyPatch) -> int:
    """Virtual servers whose destinations are asked of netlink in a run."""
    count = 0
    destinations = ipvs._destinations

    def counted(server: VirtualServerEntry, *, statistics: bool) -> tuple[DestinationEntry, ...]:
        nonlocal count
        count += 1
        return destinations(server, statistics=statistics)

    with patch.context() as patched:
        patched.setattr(ipvs, "_destinations", counted)
        in_slices(ipvs)
    return count


def test_slices_tell_what_netlink_tells(ipvs: Ipvs, monkeypatch: pytest.MonkeyPatch) -> None:
    sh("ipvsadm", "-R", script=RULES + MORE_RULES)
    reals = [RealServer(parse(f"10.2.{n >> 8}.{n & 255}"), 53, n) for n in range(2000)]
    operations = [*many(0, 600), AddVirtual(VirtualServer(HUGE, "rr")), *(AddReal(HUGE, r) for r in reals)]
    assert ipvs.apply(operations) == []
    expected = weighed(ipvs.dump())
    assert len(expected) == RULES.count("-A") + MORE_RULES.count("-A") + 601
    assert len(expected[HUGE, 0][1]) == 2000
    assert in_slices(ipvs) == expected
    assert without_listing(ipvs, monkeypatch) == expected
    # The six that are no virtual servers of plain destinations; with that the file was made use of.
    assert asked(ipvs, monkeypatch) == 6


def test_other_namespaces_are_not_seen(ipvs: Ipvs, monkeypatch: pytest.MonkeyPatch) -> None:
    with Site() as site, site.in_namespace(Ipvs) as other:
        # Neighbours in the kernel's table, which is one for all namespaces; some have the same name.
        assert ipvs.apply(many(0, 400)) == []
        assert other.apply(many(200, 400)) == []
        for each in (ipvs, other):
            expected = weighed(each.dump())
            assert len(expected) == 400
            assert in_slices(each) == expected
            # Wherever the thread is.
            assert site.in_namespace(in_slices, each) == expected
            assert asked(each, monkeypatch) < len(expected)


def test_changes_meanwhile_hide_nothing_else(ipvs: Ipvs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SLICE_SECONDS", 0)
    assert ipvs.apply(many(0, 300)) == []
    before = weighed(ipvs.dump())
    told: list[Weighed] = []
    gone: set[Frontend | None] = set()
    made = 1000
    for slices, part in enumerate(ipvs.read_in_slices()):
        told += part
        if slices % 2:
            frontend = list(before.values())[slices % len(before)][0].frontend
            assert frontend is not None
            ipvs.apply([RemoveVirtual(frontend)])
            gone.add(frontend)
        else:
            assert ipvs.apply(many(made, 5)) == []
            made += 5
    assert len(gone) > 5
    found = everything(told)
    assert found.keys() >= before.keys()
    assert all(found[name] == before[name] for name in before if found[name][0].frontend not in gone)


def test_another_namespace_is_emptied_meanwhile(ipvs: Ipvs) -> None:
    """The kernel's own dump misses some of ours then, more often than not."""
    assert ipvs.apply(many(0, 300)) == []
    expected, before = weighed(ipvs.dump()), in_use()
    with Site() as site, site.in_namespace(Ipvs) as other:
        assert other.apply(many(1000, 2000)) == []
    while in_use() > before:
        assert in_slices(ipvs) == expected


def test_what_a_dump_misses_is_told(ipvs: Ipvs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ipvs.apply(many(0, 300)) == []
    expected = weighed(ipvs.dump())
    dump = ipvs._virtual_servers
    monkeypatch.setattr(ipvs, "_virtual_servers", lambda statistics: dump(statistics=statistics)[::3])
    assert in_slices(ipvs) == expected


def test_slices_do_not_see_thresholds(ipvs: Ipvs) -> None:
    sh("ipvsadm", "-A", "-t", "10.96.0.10:8000", "-s", "rr")
    sh("ipvsadm", "-a", "-t", "10.96.0.10:8000", "-r", "10.1.1.2:80", "-m", "-x", "100", "-y", "50")
    ((_, weights),) = in_slices(ipvs).values()
    assert weights == {(parse("10.1.1.2"), 80): 1}
    audited = ipvs.dump_frontend(WEB)
    assert audited is not None
    assert audited.weights == {(parse("10.1.1.2"), 80): DISTORTED}
