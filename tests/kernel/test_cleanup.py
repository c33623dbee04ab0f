"""Cleaning up takes all that is ours from the kernel, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgeproxy.address import parse, parse_network
from edgeproxy.cleanup import cleanup
from edgeproxy.execution import Wires
from edgeproxy.hostfacts import read
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.kernel.ipvs_operations import AddReal, AddVirtual, Operation
from edgeproxy.kernel.routes import PutRoute
from edgeproxy.kernel.ruleset import render
from edgeproxy.model import Element, Frontend, Protocol, RealServer, SetName, VirtualServer
from edgeproxy.ownership import OwnershipLog, scope
from edgeproxy.settings import Settings, State
from edgeproxy.surroundings import survey
from tests.lab.namespace import Host
from tests.lab.topology import Topology

REGISTERED = Frontend(parse("10.96.0.10"), Protocol.TCP, 8000)
LOGGED = Frontend(parse("fd00:96::a"), Protocol.UDP, 53)
"""Only the ownership log knows it, as after a flush of all tables by somebody else."""
ON_ANCHOR = Frontend(parse("169.254.96.1"), Protocol.TCP, 36200)

FOREIGN_RULES = """
add table inet other
add set inet other addresses4 { type ipv4_addr; elements = { 10.96.0.10 }; }
add table ip edgeproxy
add chain ip edgeproxy input { type filter hook input priority 0; }
"""
FOREIGN_SERVERS = ["-A -t 10.96.0.10:9000 -s rr", "-a -t 10.96.0.10:9000 -r 10.1.1.2:80 -m"]
FOREIGN_ROUTES = ["route add local 10.97.0.0/16 dev lo", "route add 10.98.0.0/16 via 10.1.0.2"]


@pytest.fixture
def host() -> Iterator[Host]:
    with Topology(hosts=1, backends=1) as net:
        yield net.hosts[0]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return msgspec.structs.replace(Settings(), state=State(dir=tmp_path))


def dump(host: Host) -> tuple[str, ...]:
    """All that the three programs see of the kernel."""
    commands = (
        ["nft", "list", "ruleset"],
        ["ipvsadm", "-Sn"],
        ["ip", "route", "show", "table", "all"],
        ["ip", "-6", "route", "show", "table", "all"],
    )
    return tuple(host.run(command).stdout for command in commands)


def fill(settings: Settings) -> None:
    """One virtual server for each way to know that it is ours, with frame, elements and routes."""
    wires = Wires.open()
    try:
        wires.nft.load(render(survey(settings, read(wires.routes)).frame))
        wires.nft.commit(
            [
                Element(SetName.FRONTENDS4, (REGISTERED.address, Protocol.TCP, 8000), "cluster_ip4"),
                Element(SetName.ADDRESSES4, (REGISTERED.address,)),
                Element(SetName.UNANSWERED, (parse("192.0.2.1"),)),
            ]
        )
        OwnershipLog(settings.state.dir, scope()).rewrite([LOGGED])
        (settings.state.dir / "frame").write_text("{}")
        servers = [AddVirtual(VirtualServer(f, "rr"), reason="test") for f in (REGISTERED, LOGGED, ON_ANCHOR)]
        real = AddReal(REGISTERED, RealServer(parse("10.1.1.2"), 80), reason="test")
        operations: list[Operation] = [*servers, real]
        assert wires.ipvs.apply(operations) == []
        routes = wires.routes.apply(
            [PutRoute(parse_network(n), None) for n in ("10.96.0.0/16", "fd00:96::/112")]
        )
        assert all(outcome.reason == "" for outcome in routes)
    finally:
        wires.close()


def test_ours_goes_and_the_rest_stays(host: Host, settings: Settings) -> None:
    host.run(["nft", "-f", "-"], stdin=FOREIGN_RULES)
    host.run(["ipvsadm", "-R"], stdin="\n".join(FOREIGN_SERVERS) + "\n")
    host.ip(*FOREIGN_ROUTES)
    before = dump(host)
    host.in_namespace(fill, settings)
    assert dump(host) != before

    removed = host.in_namespace(lambda: list(cleanup(settings)))
    assert dump(host) == before
    assert sorted(removed) == [
        "removed route local 10.96.0.0/16",
        "removed route local fd00:96::/112",
        "removed table arp edgeproxy",
        "removed table inet edgeproxy",
        "removed virtual server tcp/10.96.0.10:8000 with 1 real servers",
        "removed virtual server tcp/169.254.96.1:36200 with 0 real servers",
        "removed virtual server udp/[fd00:96::a]:53 with 0 real servers",
    ]
    assert list(settings.state.dir.iterdir()) == []
    assert host.in_namespace(lambda: list(cleanup(settings))) == []
    assert dump(host) == before


def test_what_a_dump_misses_goes_too(host: Host, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    host.in_namespace(fill, settings)
    dumped = Ipvs.dump
    monkeypatch.setattr(
        Ipvs, "dump", lambda ipvs: [s for s in dumped(ipvs) if s.server.frontend not in (REGISTERED, LOGGED)]
    )
    removed = host.in_namespace(lambda: list(cleanup(settings)))
    assert host.run(["ipvsadm", "-Sn"]).stdout == ""
    assert len([line for line in removed if "virtual server" in line]) == 3


def test_the_cordon_stays(host: Host, settings: Settings) -> None:
    """The mark is the operator's word about the host, not a trace of the daemon."""
    (settings.state.dir / "cordoned").write_text("")
    host.in_namespace(lambda: list(cleanup(settings)))
    assert (settings.state.dir / "cordoned").exists()
