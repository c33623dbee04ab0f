"""What is written to the kernel, and what is not: on a kernel in memory (`tests/fake_kernel.py`)."""

from __future__ import annotations

import msgspec
import pytest

from edgeproxy.address import parse
from edgeproxy.kernel.ipvs_entries import VirtualServerEntry
from edgeproxy.model import Frontend, Protocol, Reason, SetName
from tests.conformance.behaviour import kp
from tests.fake_kernel import HASHED, FakeIpvsSocket, FakeKernel, FakeRoutes
from tests.unit.site import SETTINGS, Record, Site, finish

WEB = Frontend(parse("10.96.0.10"), Protocol.TCP, 8000)
RECORDS: dict[str, Record] = {
    "web": {"clusterIP": "10.96.0.10", "ports": [{"port": 8000, "targetPort": 80, "nodePort": 36200}]},
    "web/endpoints/a": "10.1.1.2",
    "web/endpoints/b": "10.1.2.2:80",
    "names": {"clusterIP": "10.96.0.53", "ports": [{"port": 53, "protocol": "UDP"}]},
    "names/endpoints/a": "10.1.1.2",
}


@pytest.fixture
def site() -> Site:
    built = Site()
    built.put(RECORDS)
    return built


def many(count: int, field: str, network: str) -> dict[str, Record]:
    """Services with one endpoint each, and an address in `network`, such as `10.96`, in a field of addresses."""
    records: dict[str, Record] = {}
    for number in range(count):
        pair = f"{number // 250}.{1 + number % 250}"
        records[f"s{number}"] = {field: [f"{network}.{pair}"], "ports": [{"port": 80}]}
        records[f"s{number}/endpoints/a"] = f"10.1.{pair}"
    return records


@kp("KP-147", "A virtual server that the kernel reports with the flag `hashed` is not written again")
def test_kp_147_a_hashed_virtual_server_is_no_difference(site: Site) -> None:
    assert all(entry.flags & HASHED for entry in site.kernel.servers.values())
    before = site.kernel.writes
    finish(site.reconciler.audit())
    site.restart()
    site.sync()
    assert site.kernel.writes == before


@kp("KP-150", "An unchanged state, synced again, audited or met by another daemon, is not written again")
def test_kp_150_an_unchanged_state_is_not_written_again(site: Site) -> None:
    before = site.kernel.writes
    site.reconciler.mark(["web", "names"])
    site.put(RECORDS)
    finish(site.reconciler.audit())
    site.restart()
    site.sync()
    assert site.kernel.writes == before


@kp("KP-156", "An endpoint whose real server is not in the kernel any more is removed without error")
def test_kp_156_a_real_server_that_is_gone_already(site: Site) -> None:
    del site.kernel.reals[WEB][parse("10.1.1.2"), 80]
    site.put({"web/endpoints/a": None})
    finish(site.reconciler.settle())
    assert site.reals(WEB) == {"10.1.2.2": 1}
    assert site.reconciler.findings() == ()
    site.put({"web/endpoints/c": "10.1.2.2:81", "web/endpoints/b": None})
    finish(site.reconciler.settle())
    assert set(site.kernel.reals[WEB]) == {(parse("10.1.2.2"), 81)}, "another port is another real server"


@kp("KP-157", "A thousand endpoints that come while drains end and the kernel is audited are all served")
def test_kp_157_endpoints_that_come_while_drains_end(site: Site) -> None:
    site.kernel.connections[WEB, (parse("10.1.1.2"), 80)] = 1
    site.put({"web/endpoints/a": None})
    assert site.reconciler.actual.drains
    steps = site.reconciler.audit()
    next(steps)
    for number in range(1000):
        name = f"web/endpoints/n{number}"
        site.reconciler.apply(site.write({name: f"10.8.{number // 250}.{1 + number % 250}"}), site.revision)
        if number % 100 == 0:
            finish(site.reconciler.sync())
            next(steps, None)
    finish(steps)
    site.kernel.connections.clear()
    finish(site.reconciler.settle())
    site.sync()
    assert len(site.reals(WEB)) == 1001
    assert set(site.reals(WEB).values()) == {1}
    assert not site.reconciler.actual.drains


@kp(
    "KP-166",
    "A scheduler that the kernel does not have is told of by name; no virtual server is made to find out",
    differs="the process does not start, and a dummy virtual server on 198.51.100.0 tries the scheduler",
)
def test_kp_166_an_unknown_scheduler() -> None:
    settings = msgspec.structs.replace(
        SETTINGS, proxy=msgspec.structs.replace(SETTINGS.proxy, scheduler="nosuch")
    )
    site = Site(settings)
    site.sync()
    assert not site.kernel.servers
    site.put({**RECORDS, "names": {**RECORDS["names"], "scheduler": "rr"}})  # type: ignore[dict-item]  # a mapping
    assert {frontend.port for frontend in site.kernel.servers} == {53}
    found = [f for f in site.reconciler.findings() if f.reason is Reason.UNKNOWN_SCHEDULER]
    assert {finding.key for finding in found} == {"/services/web"}
    assert all("nosuch" in finding.message for finding in found)


@kp("KP-168", "With no service there are tables, chains and sets, and no virtual server")
def test_kp_168_an_empty_state() -> None:
    site = Site()
    site.reconciler.load([], 1)
    site.sync()
    for part in ("nat_prerouting", "nat_output", "nat_postrouting", "guard"):
        assert f"add chain inet edgeproxy {part} " in site.kernel.script
    assert site.kernel.sets is not None
    assert not any(site.kernel.sets.values())
    assert site.kernel.routes
    assert not site.kernel.servers


@kp("KP-169", "1,500 services with external addresses are made without reading the host's addresses")
def test_kp_169_the_hosts_addresses_are_not_read_per_service(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    real = FakeRoutes.addresses
    monkeypatch.setattr(FakeRoutes, "addresses", lambda self: reads.append(self) or real(self))
    site = Site()
    site.put(many(1500, "externalIPs", "172.20"))
    assert len(site.kernel.servers) == 1500
    assert len(reads) <= 1


@kp(
    "KP-170",
    "2,000 services at first start: no virtual server is made before the elements that masquerade for it",
    differs="sets and masquerading follow after all virtual servers, more than 30 s later",
)
def test_kp_170_masquerading_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    seen: list[tuple[int, int]] = []
    make = FakeIpvsSocket._set_service

    def look(self: FakeIpvsSocket, frontend: Frontend, entry: VirtualServerEntry) -> int:
        seen.append(sizes(site.kernel))
        return make(self, frontend, entry)

    monkeypatch.setattr(FakeIpvsSocket, "_set_service", look)
    records = many(2000, "clusterIPs", "10.96")
    site.put(
        {n: {"address": r, "nodeName": "host0"} if isinstance(r, str) else r for n, r in records.items()}
    )
    assert len(site.kernel.servers) == len(seen) == 2000
    frontends, hairpins = sizes(site.kernel)
    assert frontends == 2000
    assert hairpins > 1900
    assert set(seen) == {(frontends, hairpins)}


def sizes(kernel: FakeKernel) -> tuple[int, int]:
    """How many service addresses, and how many endpoints that may call themselves, the tables know."""
    return len(kernel.elements(SetName.FRONTENDS4)), len(kernel.elements(SetName.HAIRPIN4))


@kp(
    "KP-238",
    "One service that changes among 500 is all that is written",
    differs="every run walks all services",
)
def test_kp_238_work_is_proportional_to_the_change() -> None:
    site = Site()
    site.put(many(500, "clusterIPs", "10.96"))
    before = site.kernel.writes
    site.put({"s7/endpoints/b": "10.2.0.9"})
    assert site.kernel.writes - before <= 2
