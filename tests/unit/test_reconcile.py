"""The engine on a kernel in memory: whatever happens, in whatever order, the records win."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from edgeproxy import reconcile
from edgeproxy.address import parse, parse_network
from edgeproxy.books import Part
from edgeproxy.catalog import ServiceEntry
from edgeproxy.claims import LostClaim
from edgeproxy.compile import Host, compile_service
from edgeproxy.kernel.conntrack import Direction, Flow, TcpState
from edgeproxy.kernel.ipvs_operations import EditReal, RemoveReal, RemoveVirtual
from edgeproxy.kernel.routes import DeleteRoute
from edgeproxy.model import Frontend, Protocol, RealServer, Reason, SetName, VirtualServer
from edgeproxy.settings import Node, Proxy, Settings
from edgeproxy.surroundings import survey
from tests.fake_kernel import CrashError, FakeKernel
from tests.unit.site import DRAINS, FACTS, SETTINGS, NoNeighbours, Record, Site, finish, picture

WEB = Frontend(parse("10.96.0.10"), Protocol.TCP, 8000)
WALK_THROUGH: dict[str, Record] = {
    "web": {"clusterIP": "10.96.0.10", "ports": [{"port": 8000, "targetPort": 80, "nodePort": 36200}]},
    "web/endpoints/a": "10.1.1.2",
    "web/endpoints/b": "10.1.2.2:80",
}
FOREIGN = (
    VirtualServer(Frontend(parse("10.96.0.1"), Protocol.TCP, 80), "rr"),
    VirtualServer(Frontend(parse("198.51.100.7"), Protocol.UDP, 53), "sh", timeout=60),
)
FOREIGN_REAL = RealServer(parse("10.9.9.9"), 99, 3)
SOME = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def service(number: int, variant: int) -> Record:
    """Records that share addresses, node ports and endpoints, and change every attribute."""
    four, six = f"10.96.0.{number}", f"fd00:96::{number}"
    web = {"name": "web", "port": 80, "targetPort": 8080}
    dns = {"name": "dns", "port": 53, "protocol": "UDP"}
    node = {"nodePort": 30000 + number}
    outside = {"type": "LoadBalancer", "externalIPs": [f"192.0.2.{number % 2}"]}
    ranges = [["10.0.0.0/8", "10.1.0.0/16"], ["10.1.0.0/16"], ["10.0.0.0/16", "2001:db8::/32"]]
    variants: list[Record] = [
        {"clusterIP": four, "ports": [web]},
        {"clusterIP": four, "ports": [web | node, dns], "sessionAffinity": "ClientIP"},
        {"clusterIPs": [four, six], "ports": [web, dns | node], "scheduler": "rr", "drainSeconds": 0},
        {"clusterIP": "10.96.0.0", "ports": [web | {"nodePort": 30001}]},
        {"clusterIP": four, **outside, "externalTrafficPolicy": "Local", "ports": [web | node, dns]},
        {"clusterIP": four, **outside, "internalTrafficPolicy": "Local", "ports": [web]},
        *(
            {"loadBalancerIPs": [f"198.51.100.{number}"], "loadBalancerSourceRanges": each, "ports": [web]}
            for each in ranges
        ),
        {"clusterIP": f"172.30.0.{number}", "ports": [web], "scheduler": "mh"},
        # On an address of its own: a virtual server that is already there keeps its old scheduler.
        {"clusterIP": f"10.96.9.{number}", "ports": [web], "scheduler": "nosuch"},
        {"type": "ExternalName", "externalName": "example.org"},
    ]
    return variants[variant]


def endpoint(number: int, variant: int) -> Record:
    four = f"10.1.{number}.2"
    variants: list[Record] = [
        four,
        f"{four}:8080",
        "10.1.0.2",
        f"fd00:1:{number}::2",
        {"address": four, "weight": 0},
        {"address": four, "weight": 5},
        {"address": four, "nodeName": "host0"},
        {"address": four, "ready": False},
    ]
    return variants[variant]


NUMBERS = st.integers(0, 2)
CHANGE = st.one_of(
    st.tuples(NUMBERS.map("s{}".format), st.builds(service, NUMBERS, st.integers(0, 11)) | st.none()),
    st.tuples(
        st.tuples(NUMBERS, NUMBERS).map(lambda at: f"s{at[0]}/endpoints/e{at[1]}"),
        st.builds(endpoint, NUMBERS, st.integers(0, 7)) | st.none(),
    ),
)
CHANGES = st.lists(CHANGE, max_size=8).map(dict)


def add_foreign(kernel: FakeKernel) -> None:
    for server in FOREIGN:
        kernel.make_foreign(server, FOREIGN_REAL)


def foreign_part(kernel: FakeKernel) -> list[object]:
    found: list[object] = []
    for server in FOREIGN:
        found += [kernel.servers.get(server.frontend), kernel.reals.get(server.frontend)]
    return found


def check_intact(site: Site, before: list[object]) -> None:
    """What holds at every moment, also for a daemon that starts now."""
    assert foreign_part(site.kernel) == before
    theirs = {server.frontend for server in FOREIGN}
    assert set(site.kernel.servers) - theirs <= site.ours(), "a virtual server of ours is in no register"
    assert not theirs & site.ours(), "somebody else's virtual server is in our register"


def busy(site: Site) -> None:
    """Every second real server has connections."""
    for frontend, reals in site.kernel.reals.items():
        for socket in sorted(reals)[::2]:
            site.kernel.connections[frontend, socket] = 1


def settled_site(records: Mapping[str, Record | None]) -> Site:
    site = Site()
    add_foreign(site.kernel)
    site.restart()
    site.put(records)
    return site


def wanted_in_the_end(*changes: Mapping[str, Record | None]) -> list[str]:
    """The state that the records alone lead to; claims go by age, so ages are kept."""
    site = settled_site({})
    for change in changes:
        site.reconciler.apply(site.write(change), site.revision)
    site.sync()
    site.quiet()
    return picture(site.kernel)


class TestAnyCrash:
    @SOME
    @given(first=CHANGES, second=CHANGES, idle=st.booleans())
    def test_between_two_writes_ends_in_the_same_kernel(
        self, first: dict[str, Record | None], second: dict[str, Record | None], *, idle: bool
    ) -> None:
        base = settled_site(first)
        if not idle:
            busy(base)
        expected = wanted_in_the_end(first, second)
        before = copy.deepcopy(foreign_part(base.kernel))
        for cut in itertools.count():
            site = base.copy()
            site.sync()
            site.kernel.stop_after(cut)
            try:
                site.put(second)
            except CrashError:
                crashed = True
            else:
                crashed = False
            check_intact(site, before)
            site.kernel.stop_after(None)
            site.restart()
            site.sync()
            check_intact(site, before)
            site.kernel.connections.clear()
            site.quiet()
            assert picture(site.kernel) == expected, f"crash after {cut} writes"
            check_intact(site, before)
            if not crashed:
                break
        event(f"writes: {cut // 10 * 10}")

    @SOME
    @given(first=CHANGES, second=CHANGES)
    def test_a_wire_that_fails_once(
        self, first: dict[str, Record | None], second: dict[str, Record | None]
    ) -> None:
        base = settled_site(first)
        busy(base)
        expected = wanted_in_the_end(first, second)
        for cut in itertools.count():
            site = base.copy()
            site.sync()
            site.kernel.stop_after(cut, OSError("no buffer space"))
            failed = False
            try:
                site.put(second)
            except OSError:
                failed = True
            site.kernel.stop_after(None)
            assert site.reconciler.pending == failed
            site.sync()
            site.kernel.connections.clear()
            site.quiet()
            assert picture(site.kernel) == expected, f"failure after {cut} writes"
            if not failed:
                break


class TestAnyOrder:
    @SOME
    @given(changes=st.lists(CHANGES, max_size=4), joined=st.sets(st.integers(0, 3)))
    def test_batches_and_restarts_make_no_difference(
        self, changes: list[dict[str, Record | None]], joined: set[int]
    ) -> None:
        site = settled_site({})
        for index, change in enumerate(changes):
            site.reconciler.apply(site.write(change), site.revision)
            if index not in joined:
                site.sync()
        site.sync()
        site.quiet()
        assert picture(site.kernel) == wanted_in_the_end(*changes)
        other = settled_site({})
        other.records, other.revision = site.records, site.revision
        other.restart()
        other.sync()
        other.quiet()
        assert picture(other.kernel) == picture(site.kernel)
        assert other.reconciler.findings() == site.reconciler.findings()

    def test_a_finding_goes_by_the_present_version_of_an_unchanged_record(self) -> None:
        outside: Record = {"clusterIP": "172.30.0.1", "ports": [{"port": 80}]}
        site = settled_site({"web": outside, "web/endpoints/a": "10.96.0.7"})
        site.put({"web": outside})
        site.put({"web/endpoints/a": "10.96.0.7"})
        revisions = {f.key: f.revision for f in site.reconciler.findings()}
        assert revisions == {"/services/web": 3, "/services/web/endpoints/a": 4}

    @SOME
    @given(records=CHANGES)
    def test_nothing_is_written_without_need(self, records: dict[str, Record | None]) -> None:
        site = settled_site(records)
        unmade = {f for f in site.reconciler.findings() if f.reason is Reason.UNKNOWN_SCHEDULER}
        writes = site.kernel.writes
        if not unmade:
            finish(site.reconciler.audit())
            site.restart()
            site.sync()
            assert site.kernel.writes == writes
        findings = site.reconciler.findings()
        site.restart()
        site.sync()
        assert site.reconciler.findings() == findings


DAMAGE = ["server", "real", "weight", "rules", "routes", "foreign edit"]


class TestAnyDamage:
    @SOME
    @given(
        records=CHANGES,
        damage=st.lists(st.sampled_from(DAMAGE), min_size=1, max_size=3),
        which=st.integers(0, 99),
    )
    def test_is_repaired_by_an_audit(
        self, records: dict[str, Record | None], damage: list[str], which: int
    ) -> None:
        site = settled_site(records)
        expected = picture(site.kernel)
        for each in damage:
            spoil(site, each, which)
        finish(site.reconciler.audit())
        site.sync()
        assert picture(site.kernel) == expected
        check_intact(site, foreign_part(site.kernel))


def spoil(site: Site, what: str, which: int) -> None:
    """Another program changes something of ours."""
    wires, theirs = site.kernel.wires(), {server.frontend for server in FOREIGN}
    mine = sorted(set(site.kernel.servers) - theirs)
    if what == "rules":
        site.kernel.flush_ruleset()
    elif what == "routes":
        wires.routes.apply([DeleteRoute(network) for network in list(site.kernel.routes)])
    if not mine:
        return
    frontend = mine[which % len(mine)]
    reals = sorted(site.kernel.reals[frontend])
    if what == "server":
        wires.ipvs.apply([RemoveVirtual(frontend)])
    elif what == "real" and reals:
        wires.ipvs.apply([RemoveReal(frontend, *reals[0])])
    elif what == "weight" and reals:
        wires.ipvs.apply([EditReal(frontend, RealServer(*reals[0], weight=77))])
    elif what == "foreign edit":
        wires.ipvs.apply([EditReal(frontend, RealServer(parse("10.1.99.9"), 9, 0))])


class TestDrains:
    def test_a_busy_real_server_stays_at_weight_0_until_its_deadline(self) -> None:
        site = settled_site(WALK_THROUGH)
        busy(site)
        site.put({"web/endpoints/a": None, "web/endpoints/b": None})
        assert site.reals(WEB) == {"10.1.1.2": 0}
        site.kernel.pass_time(299)
        finish(site.reconciler.settle())
        assert site.reals(WEB) == {"10.1.1.2": 0}
        site.kernel.pass_time(2)
        finish(site.reconciler.settle())
        assert site.reals(WEB) == {}

    def test_it_ends_early_when_the_last_connection_does(self) -> None:
        site = settled_site(WALK_THROUGH)
        busy(site)
        site.put({"web/endpoints/a": None})
        assert site.reals(WEB) == {"10.1.1.2": 0, "10.1.2.2": 1}
        site.kernel.connections.clear()
        finish(site.reconciler.settle())
        assert site.reals(WEB) == {"10.1.2.2": 1}
        assert not any((site.kernel.sets or {})[name] for name in DRAINS)

    def test_a_returned_endpoint_cancels_it(self) -> None:
        site = settled_site(WALK_THROUGH)
        busy(site)
        site.put({"web/endpoints/a": None})
        site.put({"web/endpoints/a": "10.1.1.2"})
        assert site.reals(WEB) == {"10.1.1.2": 1, "10.1.2.2": 1}
        site.kernel.pass_time(400)
        finish(site.reconciler.settle())
        finish(site.reconciler.audit())
        assert site.reals(WEB) == {"10.1.1.2": 1, "10.1.2.2": 1}

    def test_a_removed_service_stays_until_its_flows_are_over_and_a_new_one_joins_it(self) -> None:
        site = settled_site(WALK_THROUGH)
        busy(site)
        site.put(dict.fromkeys(WALK_THROUGH))
        assert site.reals(WEB) == {"10.1.1.2": 0}
        assert WEB in site.ours()
        site.put(
            {"new": {"clusterIP": "10.96.0.10", "ports": [{"port": 8000}]}, "new/endpoints/c": "10.1.3.2:1"}
        )
        assert site.reals(WEB) == {"10.1.1.2": 0, "10.1.3.2": 1}
        site.kernel.pass_time(400)
        finish(site.reconciler.settle())
        assert site.reals(WEB) == {"10.1.3.2": 1}

    def test_a_restart_keeps_the_deadline(self) -> None:
        site = settled_site(WALK_THROUGH)
        busy(site)
        site.put(dict.fromkeys(WALK_THROUGH))
        site.kernel.pass_time(200)
        site.restart()
        site.sync()
        assert site.reals(WEB) == {"10.1.1.2": 0}
        site.kernel.pass_time(101)
        finish(site.reconciler.settle())
        assert WEB not in site.kernel.servers
        assert WEB not in site.ours()

    def test_a_flush_of_the_rule_set_keeps_the_deadline(self) -> None:
        site = settled_site(WALK_THROUGH)
        busy(site)
        site.put({"web/endpoints/a": None})
        site.kernel.pass_time(100)
        site.kernel.flush_ruleset()
        finish(site.reconciler.audit())
        (deadline,) = {until for name in DRAINS for _, until in (site.kernel.sets or {})[name].values()}
        assert deadline == pytest.approx(1300)

    @pytest.mark.parametrize(("seconds", "protocol"), [(0, "TCP"), (300, "UDP"), (300, "SCTP")])
    def test_not_every_backend_drains(self, seconds: int, protocol: str) -> None:
        port = {"port": 8000, "targetPort": 80, "protocol": protocol}
        site = settled_site(
            {**WALK_THROUGH, "web": {"clusterIP": "10.96.0.10", "ports": [port], "drainSeconds": seconds}}
        )
        busy(site)
        site.put({"web/endpoints/a": None})
        assert site.reals(Frontend(WEB.address, Protocol[protocol], 8000)) == {"10.1.2.2": 1}


class TestForeign:
    def test_one_that_comes_between_looks_is_found_out_and_leaves_the_register(self) -> None:
        site = settled_site({})
        server = VirtualServer(WEB, "sh")
        site.kernel.make_foreign(server, FOREIGN_REAL)
        site.put(WALK_THROUGH)
        assert site.reals(WEB) == {"10.9.9.9": 3}
        assert WEB not in site.ours()
        (finding,) = site.reconciler.findings()
        assert (finding.key, finding.reason) == ("/services/web", Reason.FOREIGN_VIRTUAL_SERVER)
        site.restart()
        site.sync()
        assert site.reals(WEB) == {"10.9.9.9": 3}

    def test_when_it_goes_the_service_gets_its_place(self) -> None:
        site = settled_site({})
        site.kernel.make_foreign(VirtualServer(WEB, "sh"), FOREIGN_REAL)
        site.put(WALK_THROUGH)
        site.kernel.wires().ipvs.apply([RemoveVirtual(WEB)])
        finish(site.reconciler.audit())
        site.sync()
        assert site.reals(WEB) == {"10.1.1.2": 1, "10.1.2.2": 1}
        assert WEB in site.ours()
        assert site.reconciler.findings() == ()

    def test_one_on_an_anchor_is_taken_over(self) -> None:
        site = settled_site({})
        anchor = Frontend(parse("169.254.96.1"), Protocol.TCP, 36200)
        site.kernel.make_foreign(VirtualServer(anchor, "sh"), FOREIGN_REAL)
        site.put(WALK_THROUGH)
        finish(site.reconciler.audit())
        site.quiet()
        assert site.reals(anchor) == {"10.1.1.2": 1, "10.1.2.2": 1}


class TestTrouble:
    def test_an_unknown_scheduler_is_a_finding_of_its_service_alone(self) -> None:
        site = settled_site(WALK_THROUGH)
        other = {"clusterIP": "10.96.0.11", "ports": [{"port": 80}], "scheduler": "nosuch"}
        site.put({"other": other, "third": {"clusterIP": "10.96.0.12", "ports": [{"port": 80}]}})
        (finding,) = site.reconciler.findings()
        assert (finding.key, finding.reason) == ("/services/other", Reason.UNKNOWN_SCHEDULER)
        assert Frontend(parse("10.96.0.12"), Protocol.TCP, 80) in site.kernel.servers
        site.put({"other": {**other, "scheduler": "rr"}})
        assert site.reconciler.findings() == ()

    def test_a_bug_met_by_one_service_leaves_it_as_it_was(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        site = settled_site(WALK_THROUGH)

        def fails(entry: ServiceEntry, lost: Sequence[LostClaim], host: Host) -> Part:
            if entry.name == "web":
                raise KeyError("a bug")
            return compile_service(entry, lost, host)

        monkeypatch.setattr(reconcile, "compile_service", fails)
        site.put({"web/endpoints/a": None, "other": {"clusterIP": "10.96.0.11", "ports": [{"port": 80}]}})
        assert site.reals(WEB) == {"10.1.1.2": 1, "10.1.2.2": 1}
        assert Frontend(parse("10.96.0.11"), Protocol.TCP, 80) in site.kernel.servers
        (finding,) = site.reconciler.findings()
        assert (finding.key, finding.reason) == ("/services/web", Reason.BUG)
        assert "a bug" in caplog.text
        monkeypatch.undo()
        site.put({"web/endpoints/b": None})
        assert site.reconciler.findings() == ()
        assert site.reals(WEB) == {}

    def test_without_an_anchor_left_a_service_is_served_all_the_same(self) -> None:
        proxy = Proxy(anchor_cidrs=(parse_network("169.254.96.0/30"), parse_network("fd96::/64")))
        site = Site(Settings(node=SETTINGS.node, proxy=proxy))
        site.restart()
        site.put(
            {
                "web": {
                    "externalIPs": ["192.0.2.1", "192.0.2.2"],
                    "externalTrafficPolicy": "Local",
                    "ports": [{"port": 80}],
                },
                "web/endpoints/a": {"address": "10.1.1.2", "nodeName": "host0"},
            }
        )
        for address in ("192.0.2.1", "192.0.2.2"):
            assert site.reals(Frontend(parse(address), Protocol.TCP, 80)) == {"10.1.1.2": 1}
        assert {f.reason for f in site.reconciler.findings()} == {Reason.CONFIGURATION}

    def test_anchors_come_back_when_a_service_leaves(self) -> None:
        # Room for one detour: the network's first address, two for node ports, and one more.
        proxy = Proxy(anchor_cidrs=(parse_network("169.254.96.0/29"), parse_network("fd96::/64")))
        site = Site(Settings(node=SETTINGS.node, proxy=proxy))
        site.restart()

        def local(*numbers: int) -> Record:
            return {
                "externalIPs": [f"192.0.2.{number}" for number in numbers],
                "externalTrafficPolicy": "Local",
                "ports": [{"port": 80}],
            }

        site.put({"a": local(*range(1, 5))})
        assert site.reconciler.findings() == ()
        site.put({"b": local(9)})
        assert [f.key for f in site.reconciler.findings()] == ["/services/b"]
        site.put({"a": None})
        finish(site.reconciler.audit())
        finish(site.reconciler.audit())
        site.sync()
        assert site.reconciler.findings() == ()
        assert (SetName.DETOURS4, (parse("192.0.2.9"), Protocol.TCP, 80)) in site.reconciler.actual.elements

    def test_a_name_longer_than_a_comment(self) -> None:
        name = ".".join(["a" * 63, "b" * 63, "c" * 63])
        site = settled_site({name: WALK_THROUGH["web"], f"{name}/endpoints/a": "10.1.1.2"})
        comments = {e.comment for e, _ in (site.kernel.sets or {})[SetName.FRONTENDS4].values()}
        assert comments == {name[:128]}
        site.write({name: "not JSON"})
        site.restart()
        site.reconciler.mark(site.reconciler.catalog.hold(f"/services/{name}".encode()))
        site.sync()
        site.quiet()
        assert site.reals(WEB) == {"10.1.1.2": 1}


@pytest.mark.parametrize("ranges", [("10.0.0.0/8", "10.1.0.0/16"), ("10.1.0.0/16", "10.0.0.0/8")])
def test_source_ranges_that_change_into_others_inside_or_around_them(ranges: tuple[str, str]) -> None:
    site = settled_site({})
    for cidr in (*ranges, *ranges):
        record = {
            "loadBalancerIPs": ["198.51.100.1"],
            "loadBalancerSourceRanges": [cidr],
            "ports": [{"port": 80}],
        }
        site.put({"web": record})
        ((element, _),) = site.kernel.elements(SetName.SOURCES4).values()
        assert element.key[3] == parse_network(cidr).address


class TestHeld:
    def test_a_service_whose_record_cannot_be_read_keeps_what_it_has(self) -> None:
        before = {
            **WALK_THROUGH,
            "web": {
                "clusterIP": "10.96.0.10",
                "externalIPs": ["192.0.2.1"],
                "externalTrafficPolicy": "Local",
                "ports": [{"port": 8000, "targetPort": 80, "nodePort": 36200}],
            },
            "web/endpoints/here": {"address": "10.1.3.2", "nodeName": "host0"},
        }
        site = settled_site(before)
        expected = picture(site.kernel)
        site.write({"web": "not JSON"})
        site.restart()
        site.sync()
        site.quiet()
        assert picture(site.kernel) == expected, "its history is still to be read"
        site.reconciler.mark(site.reconciler.catalog.hold(b"/services/web"))
        site.sync()
        site.quiet()
        assert picture(site.kernel) == expected, "its history is gone"
        site.put({"web": None})
        site.quiet()
        assert picture(site.kernel) == picture(settled_site({}).kernel)


class TestSurroundings:
    def test_the_host_comes_to_own_an_external_address(self) -> None:
        site = settled_site({"web": {"externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}})
        network = parse_network("192.0.2.1/32")
        assert network in site.kernel.routes
        owned = Settings(node=Node(name="host0", addresses=(parse("10.1.0.11"), parse("192.0.2.1"))))
        site.reconciler.set_surroundings(survey(owned, FACTS))
        assert site.reconciler.pending
        site.sync()
        assert network not in site.kernel.routes
        site.reconciler.set_surroundings(survey(SETTINGS, FACTS))
        site.sync()
        assert network in site.kernel.routes

    def test_no_change_is_no_work(self) -> None:
        site = settled_site(WALK_THROUGH)
        site.reconciler.set_surroundings(survey(SETTINGS, FACTS))
        assert not site.reconciler.pending


class RestlessNeighbours(NoNeighbours):
    """Somebody changes rules while they are being looked at, or makes them unreadable, in the first looks."""

    def __init__(self, site: Site, troubles: list[str]) -> None:
        super().__init__()
        self.looks = 0
        self._site = site
        self._troubles = troubles

    def look_at_rules(self, proxy: Proxy) -> bool:
        self.looks += 1
        trouble = self._troubles.pop() if self._troubles else ""
        self._site.kernel.generation += trouble == "changed"
        return trouble != "unreadable"


class TestRulesOfOthers:
    @pytest.mark.parametrize("trouble", ["changed", "unreadable"])
    def test_what_a_look_may_have_missed_is_looked_at_again(self, trouble: str) -> None:
        site = settled_site(WALK_THROUGH)
        neighbours = RestlessNeighbours(site, [trouble])
        site.reconciler._coexistence = neighbours
        finish(site.reconciler.audit())
        assert neighbours.looks == 0
        site.kernel.generation += 1
        for looks in (1, 2, 2):
            finish(site.reconciler.audit())
            assert neighbours.looks == looks


class TestFlows:
    def flow(self, protocol: int, backend: str, state: int = -1) -> Flow:
        client, host = parse("198.51.100.9"), parse("10.1.0.11")
        return Flow(
            protocol=protocol,
            original=Direction(client, 40000, host, 36200),
            reply=Direction(parse(backend), 80, client, 40000),
            status=0,
            tcp_state=state,
            mark=0,
            timeout=30,
            id=1,
        )

    def test_flows_that_were_opened_while_the_route_was_away_are_forgotten(self) -> None:
        site = settled_site(
            {"web": {"externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}, "web/endpoints/a": "10.1.1.2"}
        )
        client, address = parse("198.51.100.9"), parse("192.0.2.1")
        past, served, open_ = (
            Flow(
                Protocol.TCP,
                Direction(client, n, address, 80),
                Direction(to, 80, host, n),
                0,
                state,
                0,
                30,
                n,
            )
            for n, to, host, state in (
                (1, address, parse("10.1.0.11"), TcpState.SYN_SENT),
                (2, parse("10.1.1.2"), client, TcpState.SYN_SENT),
                (3, address, client, TcpState.ESTABLISHED),
            )
        )
        site.kernel.flows = [past, served, open_]
        finish(site.reconciler.audit())
        assert site.kernel.flows == [past, served, open_]
        site.kernel.routes.clear()
        finish(site.reconciler.audit())
        assert site.kernel.flows == [served, open_]

    def test_half_open_flows_of_a_backend_that_left_are_forgotten(self) -> None:
        site = settled_site(WALK_THROUGH)
        opening, open_, other = (
            self.flow(Protocol.TCP, "10.1.1.2", TcpState.SYN_SENT),
            self.flow(Protocol.TCP, "10.1.1.2", TcpState.ESTABLISHED),
            self.flow(Protocol.TCP, "10.1.2.2", TcpState.SYN_SENT),
        )
        site.kernel.flows = [opening, open_, other]
        site.put({"web/endpoints/a": None})
        assert site.kernel.flows == [open_, other]
