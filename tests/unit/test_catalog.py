"""The catalog: folding events in, last good versions, conflicts, and what counts as a change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeproxy.address import parse
from edgeproxy.catalog import Catalog, Counts
from edgeproxy.claims import NodePortClaim
from edgeproxy.model import Protocol, Reason
from edgeproxy.supply import BadRecord, Supplied, Supply

PREFIX = "/services/"
BAD = b"{"


class KeyValue(msgspec.Struct, frozen=True):
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int


class Event(msgspec.Struct, frozen=True):
    key: bytes
    value: bytes | None
    create_revision: int
    mod_revision: int


def key(name: str) -> bytes:
    return PREFIX.encode() + name.encode()


def web(node_port: int = 36200, **fields: object) -> bytes:
    return json.dumps({"ports": [{"port": 80, "nodePort": node_port}], **fields}).encode()


class Store:
    """What etcd does: one revision per put or delete, create revisions, history."""

    def __init__(self) -> None:
        self.revision = 0
        self.now: dict[bytes, KeyValue] = {}
        self.history: list[Event] = []

    def put(self, name: str, value: bytes) -> Event:
        self.revision += 1
        created = self.now[key(name)].create_revision if key(name) in self.now else self.revision
        self.now[key(name)] = KeyValue(key(name), value, created, self.revision)
        return self._happened(Event(key(name), value, created, self.revision))

    def delete(self, name: str) -> Event:
        self.revision += 1
        self.now.pop(key(name), None)
        return self._happened(Event(key(name), None, 0, self.revision))

    def at(self, raw: bytes, revision: int) -> KeyValue | None:
        last = [e for e in self.history if e.key == raw and e.mod_revision <= revision]
        if not last or last[-1].value is None:
            return None
        return KeyValue(raw, last[-1].value, last[-1].create_revision, last[-1].mod_revision)

    def _happened(self, event: Event) -> Event:
        self.history.append(event)
        return event


def tracked() -> tuple[Store, Catalog]:
    """A store with one good service and two endpoints, and a catalog that has seen them."""
    store, catalog = Store(), Catalog(PREFIX)
    store.put("web", web())
    store.put("web/endpoints/b", b"10.1.1.2:80")
    store.put("web/endpoints/a", b"10.1.1.1:80")
    assert take(catalog, store) == {"web"}
    return store, catalog


def take(catalog: Catalog, store: Store) -> frozenset[str]:
    return catalog.replace(store.now.values(), store.revision)


def follow(catalog: Catalog, *events: Event) -> frozenset[str]:
    return catalog.apply(events, events[-1].mod_revision)


def read_back(catalog: Catalog, store: Store) -> None:
    """Resolve bad records as the daemon does."""
    while todo := catalog.unresolved():
        for bad in todo:
            catalog.supply(bad.key, store.at(bad.key, bad.mod_revision - 1))


def node_port_of(catalog: Catalog, name: str) -> int:
    entry = catalog.entry(name)
    assert entry is not None
    return entry.service.ports[0].node_port


def reasons(catalog: Catalog) -> list[tuple[str, int, str, Reason]]:
    return [(f.key, f.revision, f.path, f.reason) for f in catalog.findings()]


class TestChanges:
    def test_a_service_comes_with_its_endpoints_in_order_of_key(self) -> None:
        _, catalog = tracked()
        entry = catalog.entry("web")
        assert entry is not None
        assert (entry.key, entry.create_revision, entry.mod_revision) == ("/services/web", 1, 1)
        assert [(e.name, e.key, e.mod_revision) for e in entry.endpoints] == [
            ("a", "/services/web/endpoints/a", 3),
            ("b", "/services/web/endpoints/b", 2),
        ]
        assert (catalog.services(), catalog.revision) == (("web",), 3)
        assert catalog.counts() == Counts(services=1, endpoints=2, stray=0)
        assert catalog.findings() == ()

    def test_an_event_names_its_service_only(self) -> None:
        store, catalog = tracked()
        assert follow(catalog, store.put("api", web(36201))) == {"api"}
        assert follow(catalog, store.put("web/endpoints/c", b"10.1.1.3")) == {"web"}
        assert follow(catalog, store.delete("web/endpoints/c")) == {"web"}
        assert follow(catalog, store.delete("web")) == {"web"}
        assert catalog.entry("web") is None
        assert catalog.services() == ("api",)

    def test_an_equal_record_is_no_change_but_its_revision_is_known(self) -> None:
        store, catalog = tracked()
        assert follow(catalog, store.put("web", web())) == frozenset()
        assert (
            follow(catalog, store.put("web/endpoints/a", b'{"address":"10.1.1.1","port":80}')) == frozenset()
        )
        entry = catalog.entry("web")
        assert entry is not None
        assert entry.mod_revision == 4
        assert take(catalog, store) == frozenset()

    def test_there_and_back_in_one_call_is_no_change(self) -> None:
        store, catalog = tracked()
        assert follow(catalog, store.put("web", web(36201)), store.put("web", web())) == frozenset()
        assert follow(catalog, store.put("api", web(1)), store.delete("api")) == frozenset()

    def test_a_snapshot_removes_what_it_does_not_have(self) -> None:
        store, catalog = tracked()
        store.delete("web/endpoints/a")
        store.put("api", BAD)
        assert take(catalog, store) == {"web"}
        store.delete("web")
        store.delete("api")
        store.delete("web/endpoints/b")
        assert take(catalog, store) == {"web"}
        assert catalog.counts() == Counts(0, 0, 0)
        assert catalog.findings() == ()

    def test_stray_endpoints_wait_for_their_service(self) -> None:
        store, catalog = Store(), Catalog(PREFIX)
        assert follow(catalog, store.put("web/endpoints/a", b"10.1.1.1")) == frozenset()
        assert (catalog.counts().stray, catalog.findings()) == (1, ())
        assert follow(catalog, store.put("web", web())) == {"web"}
        entry = catalog.entry("web")
        assert entry is not None
        assert [e.endpoint.address for e in entry.endpoints] == [parse("10.1.1.1")]

    def test_keys_that_fit_no_grammar_are_findings_until_they_go(self) -> None:
        store, catalog = tracked()
        assert follow(catalog, store.put("Web", web()), store.put("_meta/x", b"1")) == frozenset()
        assert reasons(catalog) == [("/services/Web", 4, "", Reason.BAD_KEY)]
        take(catalog, store)
        assert len(catalog.findings()) == 1
        follow(catalog, store.delete("Web"))
        assert catalog.findings() == ()
        store.put("Web", web())
        take(catalog, store)
        store.delete("Web")
        take(catalog, store)
        assert catalog.findings() == ()

    def test_warnings_stand_while_the_record_does(self) -> None:
        store, catalog = tracked()
        assert follow(catalog, store.put("web", web(nodeport=1))) == frozenset()
        assert reasons(catalog) == [("/services/web", 4, "nodeport", Reason.UNKNOWN_FIELD)]
        take(catalog, store)
        assert len(catalog.findings()) == 1
        follow(catalog, store.put("web", web()))
        assert catalog.findings() == ()


class TestBadRecords:
    def test_the_last_good_version_stays_in_force(self) -> None:
        store, catalog = tracked()
        assert follow(catalog, store.put("web", web(36201)), store.put("web", BAD)) == {"web"}
        assert node_port_of(catalog, "web") == 36201
        assert reasons(catalog) == [("/services/web", 5, "", Reason.BAD_RECORD)]
        assert "revision 4 stays in force" in catalog.findings()[0].message
        assert catalog.unresolved() == ()
        assert follow(catalog, store.put("web", web(36202))) == {"web"}
        assert (node_port_of(catalog, "web"), catalog.findings()) == (36202, ())

    def test_a_delete_ends_it(self) -> None:
        store, catalog = tracked()
        follow(catalog, store.put("web/endpoints/a", BAD))
        assert follow(catalog, store.delete("web/endpoints/a")) == {"web"}
        entry = catalog.entry("web")
        assert entry is not None
        assert [e.name for e in entry.endpoints] == ["b"]
        assert catalog.findings() == ()

    def test_a_record_that_was_never_good_is_left_out_alone(self) -> None:
        store, catalog = tracked()
        assert follow(catalog, store.put("api", BAD), store.put("web/endpoints/c", BAD)) == frozenset()
        assert catalog.entry("api") is None
        assert [finding.key for finding in catalog.findings()] == [
            "/services/api",
            "/services/web/endpoints/c",
        ]
        assert "left out" in catalog.findings()[0].message
        assert catalog.unresolved() == ()
        assert catalog.held() == frozenset()

    def test_a_good_version_does_not_outlive_its_key(self) -> None:
        store, catalog = tracked()
        assert follow(catalog, store.delete("web"), store.put("web", BAD)) == {"web"}
        assert catalog.entry("web") is None
        store, catalog = tracked()
        store.delete("web")
        store.put("web", BAD)
        assert take(catalog, store) == {"web"}
        assert catalog.entry("web") is None
        assert catalog.unresolved() == ()

    def test_a_snapshot_keeps_last_good_versions(self) -> None:
        store, catalog = tracked()
        follow(catalog, store.put("web", BAD))
        assert take(catalog, store) == frozenset()
        assert node_port_of(catalog, "web") == 36200

    def test_a_newer_good_version_that_a_snapshot_hides_is_looked_for(self) -> None:
        store, catalog = tracked()
        store.put("web", web(36201))
        store.put("web", BAD)
        assert take(catalog, store) == frozenset()
        assert catalog.unresolved() == (BadRecord(key("web"), 5),)
        assert catalog.held() == frozenset()
        read_back(catalog, store)
        assert node_port_of(catalog, "web") == 36201

    def test_so_is_one_that_was_left_out_between_events(self) -> None:
        store, catalog = tracked()
        store.put("web", web(36201))
        catalog.apply([store.put("web", BAD)], store.revision, gap=True)
        assert catalog.unresolved() == (BadRecord(key("web"), 5),)


class TestReadingBack:
    def start(self) -> tuple[Store, Catalog]:
        """A catalog that starts on a bad service with a good version three puts ago."""
        store, catalog = Store(), Catalog(PREFIX)
        for value in (web(36200), BAD, b"[]", b"5"):
            store.put("web", value)
        store.put("api", web(36201))
        store.put("api/endpoints/a", b"10.1.1.1")
        assert take(catalog, store) == {"web", "api"}
        return store, catalog

    def test_revision_by_revision_to_the_last_good_version(self) -> None:
        store, catalog = self.start()
        assert catalog.unresolved() == (BadRecord(key("web"), 4),)
        assert catalog.held() == {"web"}
        supplied = catalog.supply(key("web"), store.at(key("web"), 3))
        assert supplied == Supplied(Supply.BAD)
        assert catalog.unresolved() == (BadRecord(key("web"), 3),)
        assert catalog.supply(key("web"), store.at(key("web"), 3)).outcome is Supply.STALE
        assert catalog.supply(key("web"), store.at(key("web"), 2)).outcome is Supply.BAD
        supplied = catalog.supply(key("web"), store.at(key("web"), 1))
        assert supplied == Supplied(Supply.GOOD, frozenset({"web"}))
        assert node_port_of(catalog, "web") == 36200
        assert (catalog.unresolved(), catalog.held()) == ((), frozenset())
        assert "revision 1 stays in force" in catalog.findings()[0].message

    def test_nothing_good_before(self) -> None:
        store, catalog = Store(), Catalog(PREFIX)
        store.put("web", BAD)
        store.put("web", BAD)
        take(catalog, store)
        supplied = catalog.supply(key("web"), store.at(key("web"), 1))
        assert supplied == Supplied(Supply.EXHAUSTED, frozenset({"web"}))
        assert (catalog.unresolved(), catalog.held()) == ((), frozenset())

    def test_history_compacted_holds_the_service_until_a_good_version(self) -> None:
        store, catalog = self.start()
        assert catalog.hold(key("web")) == frozenset()
        assert not catalog.unresolved()
        assert catalog.held() == {"web"}
        assert [finding.reason for finding in catalog.findings()] == [Reason.BAD_RECORD, Reason.HELD]
        take(catalog, store)
        assert catalog.held() == {"web"}
        assert follow(catalog, store.put("web", BAD)) == frozenset()
        assert catalog.held() == {"web"}
        assert follow(catalog, store.put("web", web())) == {"web"}
        assert (catalog.held(), catalog.findings()) == (frozenset(), ())

    def test_a_delete_ends_the_hold_and_is_a_change(self) -> None:
        store, catalog = self.start()
        catalog.hold(key("web"))
        assert follow(catalog, store.delete("web")) == {"web"}
        assert (catalog.held(), catalog.entry("web")) == (frozenset(), None)

    def test_a_bad_endpoint_holds_its_service(self) -> None:
        store, _ = self.start()
        store.put("api/endpoints/a", BAD)
        fresh = Catalog(PREFIX)
        take(fresh, store)
        fresh.hold(key("api/endpoints/a"))
        assert fresh.held() == {"api", "web"}
        assert follow(fresh, store.put("api/endpoints/a", b"10.1.1.1")) == {"api"}
        assert fresh.held() == {"web"}

    def test_compacted_history_keeps_the_version_in_force(self) -> None:
        store, catalog = tracked()
        store.put("web", BAD)
        store.put("web", BAD)
        take(catalog, store)
        catalog.hold(key("web"))
        assert (catalog.held(), catalog.unresolved()) == (frozenset(), ())
        assert node_port_of(catalog, "web") == 36200

    def test_answers_that_come_late_do_nothing(self) -> None:
        store, catalog = self.start()
        late = store.at(key("web"), 1)
        follow(catalog, store.put("web", web(36205)))
        assert catalog.supply(key("web"), late).outcome is Supply.STALE
        assert catalog.hold(key("web")) == frozenset()
        assert catalog.supply(key("nobody"), None).outcome is Supply.STALE
        assert node_port_of(catalog, "web") == 36205


class TestConflicts:
    def test_the_loser_is_told_and_takes_over_when_the_winner_goes(self) -> None:
        store, catalog = tracked()
        assert follow(catalog, store.put("api", web())) == {"api"}
        claim = NodePortClaim(Protocol.TCP, 36200)
        assert catalog.winner(claim) == "web"
        assert [(c.path, c.claim, c.winner_key) for c in catalog.lost("api")] == [
            ("ports[0].nodePort", claim, "/services/web")
        ]
        finding = catalog.findings()[0]
        assert (finding.key, finding.path, finding.reason) == (
            "/services/api",
            "ports[0].nodePort",
            Reason.CONFLICT,
        )
        assert "node port tcp/36200 belongs to /services/web" in finding.message
        assert follow(catalog, store.delete("web")) == {"web", "api"}
        assert (catalog.lost("api"), catalog.findings(), catalog.winner(claim)) == ((), (), "api")

    def test_a_bad_version_keeps_its_claims(self) -> None:
        store, catalog = tracked()
        follow(catalog, store.put("api", web()), store.put("web", BAD))
        assert catalog.winner(NodePortClaim(Protocol.TCP, 36200)) == "web"

    def test_a_record_made_anew_goes_to_the_end_of_the_line(self) -> None:
        store, catalog = tracked()
        follow(catalog, store.put("api", web()))
        assert follow(catalog, store.delete("web"), store.put("web", web())) == {"web", "api"}
        assert catalog.winner(NodePortClaim(Protocol.TCP, 36200)) == "api"


NAMES = ["a", "b", "a/endpoints/x", "a/endpoints/y", "b/endpoints/x", "Bad", "_meta/x"]
VALUES = [
    web(36200),
    web(36201),
    web(36201, sessionAffinity="ClientIP"),
    web(36200, unknown=1),
    b"10.1.1.1",
    b"10.1.1.1:80",
    b"10.1.1.2",
    BAD,
]
OPERATIONS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([*VALUES, None])), max_size=40)


def states(catalog: Catalog) -> Sequence[object]:
    """All that can be asked of a catalog, but for messages that tell how it came about."""
    names = ("a", "b")
    return (
        [catalog.entry(name) for name in names],
        [catalog.lost(name) for name in names],
        catalog.findings(),
        catalog.services(),
        catalog.counts(),
        catalog.held(),
        catalog.unresolved(),
    )


def visible(catalog: Catalog, name: str) -> object:
    """What a compilation of one service depends on."""
    entry = catalog.entry(name)
    if entry is None:
        return None
    endpoints = [(e.key, e.create_revision, e.endpoint) for e in entry.endpoints]
    return (entry.service, entry.create_revision, endpoints, catalog.lost(name))


def batches(events: list[Event], cuts: Iterable[int]) -> list[list[Event]]:
    edges = sorted({0, len(events), *(cut for cut in cuts if cut <= len(events))})
    return [events[one:two] for one, two in pairwise(edges)]


@settings(max_examples=300, deadline=None)
@given(OPERATIONS, st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)))
def test_any_batching_of_any_history_ends_as_a_fresh_start_does(
    operations: list[tuple[str, bytes | None]], cuts: list[int], relists: list[int]
) -> None:
    store, catalog = Store(), Catalog(PREFIX)
    events = [store.put(n, v) if v is not None else store.delete(n) for n, v in operations]
    for index, batch in enumerate(batches(events, cuts)):
        before = {name: visible(catalog, name) for name in ("a", "b")}
        revision = batch[-1].mod_revision
        if index in relists:
            now = [store.at(raw, revision) for raw in {key(name) for name in NAMES}]
            changed = catalog.replace([record for record in now if record], revision)
            while todo := catalog.unresolved():
                for bad in todo:
                    supplied = catalog.supply(bad.key, store.at(bad.key, bad.mod_revision - 1))
                    changed |= supplied.changed
        else:
            changed = catalog.apply(batch, revision)
        for name in ("a", "b"):
            assert visible(catalog, name) == before[name] or name in changed
    fresh = Catalog(PREFIX)
    take(fresh, store)
    read_back(fresh, store)
    assert states(catalog) == states(fresh)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_only_differences_are_reported(operations: list[tuple[str, bytes | None]]) -> None:
    store, catalog = Store(), Catalog(PREFIX)
    for name, value in operations:
        before = {each: visible(catalog, each) for each in ("a", "b")}
        changed = follow(catalog, store.put(name, value) if value is not None else store.delete(name))
        assert changed == {each for each in before if visible(catalog, each) != before[each]}
