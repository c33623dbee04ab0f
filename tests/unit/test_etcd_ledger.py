"""The ledger: what proves a history, and what an audit calls a difference."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.etcd.changes import Batch, Cause, Event, KeyValue, Snapshot
from edgeproxy.etcd.ledger import Audit, Ledger, Probe, entry_of, proves


def record(key: bytes, revision: int, value: bytes = b"v") -> KeyValue:
    return KeyValue(key=key, value=value, create_revision=1, mod_revision=revision)


def ledger(*records: KeyValue, at: int = 10, cluster: int = 7) -> Ledger:
    made = Ledger()
    made.replace(Snapshot(revision=at, records=records, cause=Cause.START), cluster)
    return made


def batch(*events: Event) -> Batch:
    return Batch(revision=events[-1].mod_revision, events=events)


def test_an_empty_ledger_can_prove_nothing() -> None:
    assert Ledger().probes() == ()
    assert ledger().probes() == ()


def test_the_newest_live_key_is_read_at_the_resume_point() -> None:
    known = ledger(record(b"a", 3), record(b"b", 9), record(b"c", 5))
    known.advance(4000)
    (probe,) = known.probes()
    assert (probe.key, probe.revision) == (b"b", 4000)
    assert proves(probe, record(b"b", 9))
    assert not proves(probe, record(b"b", 8))
    assert not proves(probe, record(b"b", 9, b"other value"))
    assert not proves(probe, None)


def test_a_later_delete_is_proven_by_absence() -> None:
    known = ledger(record(b"a", 3), record(b"b", 9))
    known.apply(batch(Event(b"b", None, 0, 12)))
    live, gone = known.probes()
    assert live == Probe(key=b"a", revision=12, entry=entry_of(3, b"v"))
    assert gone == Probe(key=b"b", revision=12, entry=None)
    assert proves(gone, None)
    assert not proves(gone, record(b"b", 9))


def test_a_delete_before_the_newest_put_needs_no_probe() -> None:
    known = ledger(record(b"a", 3), record(b"b", 9))
    known.apply(batch(Event(b"b", None, 0, 12), Event(b"b", b"again", 13, 13)))
    assert [probe.key for probe in known.probes()] == [b"b"]


def test_whose_answer_it_can_be() -> None:
    known = ledger(at=100, cluster=7)
    assert known.agrees(7, 100, asked_at=100)
    assert known.agrees(0, 0, asked_at=100), "a proxy tells neither"
    assert not known.agrees(8, 100, asked_at=100)
    assert not known.agrees(7, 99, asked_at=100)
    known.advance(105)
    assert known.agrees(7, 101, asked_at=100), "the stream has overtaken the answer"


def test_an_audit_that_finds_all_well() -> None:
    known = ledger(record(b"a", 3), record(b"b", 9))
    audit = Audit(known)
    audit.compare([record(b"a", 3)])
    audit.compare([record(b"b", 9)])
    assert audit.differences() == []


def test_an_audit_finds_lost_puts_deletes_and_values() -> None:
    known = ledger(record(b"changed", 3), record(b"deleted", 4), record(b"same", 5), record(b"value", 6))
    audit = Audit(known)
    audit.compare([record(b"changed", 8), record(b"new", 9), record(b"same", 5), record(b"value", 6, b"w")])
    assert audit.differences() == [b"changed", b"deleted", b"new", b"value"]


def test_an_event_in_flight_explains_a_difference() -> None:
    known = ledger(record(b"a", 3), record(b"b", 4))
    audit = Audit(known)
    audit.compare([record(b"a", 11)])
    assert audit.differences() == [b"a", b"b"]
    known.apply(batch(Event(b"a", b"v", 1, 11), Event(b"b", None, 0, 12)))
    assert audit.differences() == []
    audit.close()
    known.apply(batch(Event(b"c", b"v", 13, 13)))
    assert audit.differences() == []


keys = st.sampled_from([b"a", b"b", b"c", b"d"])


@given(
    st.lists(st.tuples(keys, st.one_of(st.none(), st.binary(max_size=3))), max_size=40), st.integers(0, 40)
)
def test_a_ledger_fed_by_events_is_the_ledger_of_the_list(
    history: list[tuple[bytes, bytes | None]], split: int
) -> None:
    """List at any point of a history, follow the rest: as if listed at the end; probes hold there."""
    state: dict[bytes, KeyValue] = {}
    known = Ledger()
    known.replace(Snapshot(revision=1, records=(), cause=Cause.START), 7)
    for revision, (key, value) in enumerate(history, 2):
        if value is None:
            state.pop(key, None)
        else:
            state[key] = record(key, revision, value)
        if revision - 2 == split:
            known.replace(Snapshot(revision=revision, records=tuple(state.values()), cause=Cause.START), 7)
        else:
            known.apply(batch(Event(key, value, 1, revision)))
    audit = Audit(known)
    audit.compare(state.values())
    assert audit.differences() == []
    assert len(known) == len(state)
    assert all(proves(probe, state.get(probe.key)) for probe in known.probes())
