"""The watch stream's rules, played message by message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.etcd import messages as wire
from edgeproxy.etcd.changes import Batch, Event
from edgeproxy.etcd.errors import (
    HistoryCompacted,
    HistoryReplaced,
    NoLeader,
    PermissionRefused,
    StreamEnded,
    TokenRefused,
)
from edgeproxy.etcd.progress import Confirmed, Created, Progress

CLUSTER = 0xABC


def header(revision: int = 0, cluster_id: int = CLUSTER) -> wire.ResponseHeader:
    return wire.ResponseHeader(cluster_id=cluster_id, revision=revision)


def created(revision: int = 100) -> wire.WatchResponse:
    return wire.WatchResponse(header=header(revision), created=True)


def put(revision: int, key: bytes = b"k") -> wire.Event:
    kv = wire.KeyValue(key=key, value=b"v%d" % revision, create_revision=1, mod_revision=revision)
    return wire.Event(type=wire.Event.PUT, kv=kv)


def delete(revision: int, key: bytes = b"k") -> wire.Event:
    return wire.Event(type=wire.Event.DELETE, kv=wire.KeyValue(key=key, mod_revision=revision))


def events(*what: wire.Event, fragment: bool = False, at: int = 500) -> wire.WatchResponse:
    return wire.WatchResponse(header=header(at), events=what, fragment=fragment)


def opened(revision: int = 10) -> Progress:
    progress = Progress(revision, CLUSTER, "http://a:1")
    assert progress.receive(created()) == Created()
    return progress


def test_the_created_header_does_not_move_the_resume_point() -> None:
    assert opened(10).revision == 10


def test_a_batch_ends_at_its_last_event_not_at_the_header() -> None:
    progress = opened()
    said = progress.receive(events(put(11), delete(12)))
    assert said == Batch(
        revision=12,
        events=(Event(b"k", b"v11", 1, 11), Event(b"k", None, 0, 12)),
    )
    assert progress.revision == 12


def test_an_empty_value_is_no_delete() -> None:
    kv = wire.KeyValue(key=b"k", create_revision=11, mod_revision=11)
    said = opened().receive(events(wire.Event(kv=kv)))
    assert isinstance(said, Batch)
    assert said.events == (Event(b"k", b"", 11, 11),)


def test_fragments_are_joined_before_anything_is_shown() -> None:
    progress = opened()
    assert progress.receive(events(put(11, b"a"), fragment=True)) is None
    assert progress.receive(events(put(11, b"b"), fragment=True)) is None
    assert progress.revision == 10
    said = progress.receive(events(put(11, b"c")))
    assert isinstance(said, Batch)
    assert [event.key for event in said.events] == [b"a", b"b", b"c"]
    assert progress.receive(events(put(12))) == Batch(12, (Event(b"k", b"v12", 1, 12),))


def test_progress_between_fragments_does_not_count() -> None:
    progress = opened()
    progress.receive(events(put(11, b"a"), fragment=True))
    assert progress.receive(wire.WatchResponse(header=header(400))) is None
    assert progress.revision == 10


def test_timed_progress_moves_the_resume_point_forward_only() -> None:
    progress = opened()
    assert progress.receive(wire.WatchResponse(header=header(50))) == Confirmed(50)
    assert progress.receive(wire.WatchResponse(header=header(40))) is None
    assert progress.receive(wire.WatchResponse(header=header(0))) is None
    assert progress.revision == 50


def test_a_requested_progress_answer_is_ignored() -> None:
    progress = opened()
    assert progress.receive(wire.WatchResponse(header=header(8302), watch_id=-1)) is None
    assert progress.revision == 10


def test_old_events_are_dropped_and_counted() -> None:
    progress = opened(10)
    assert progress.receive(events(put(9), put(10))) is None
    said = progress.receive(events(put(10), put(11)))
    assert isinstance(said, Batch)
    assert [event.mod_revision for event in said.events] == [11]
    assert progress.dropped == 3


def test_headers_of_a_proxy_say_nothing() -> None:
    progress = Progress(10, CLUSTER, "http://a:1")
    assert progress.receive(wire.WatchResponse(header=header(0, cluster_id=0), created=True)) == Created()
    unknown = Progress(10, 0, "http://a:1")
    assert unknown.receive(created()) == Created()


def test_another_cluster_is_another_history() -> None:
    with pytest.raises(HistoryReplaced, match="cluster id def instead of abc"):
        opened().receive(wire.WatchResponse(header=header(50, cluster_id=0xDEF)))


def cancelled(reason: str, **more: int | bool) -> wire.WatchResponse:
    return wire.WatchResponse(header=header(), canceled=True, cancel_reason=reason, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token", TokenRefused),
        ("rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old", TokenRefused),
        ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", PermissionRefused),
        ("etcdserver: no leader", NoLeader),
        ("whatever else", StreamEnded),
        ("", StreamEnded),
    ],
)
@pytest.mark.parametrize("at_creation", [False, True])
def test_a_cancel_is_told_by_its_reason(reason: str, error: type[Exception], at_creation: bool) -> None:
    progress = Progress(10, CLUSTER, "http://a:1") if at_creation else opened()
    with pytest.raises(error):
        progress.receive(cancelled(reason, created=at_creation, watch_id=-1 if at_creation else 0))


def test_a_cancel_with_a_compaction_is_a_compaction_whatever_its_reason() -> None:
    with pytest.raises(HistoryCompacted, match="revision 11 has been compacted") as caught:
        opened().receive(cancelled("etcdserver: no leader", compact_revision=151))
    assert caught.value.revision == 151


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=20),
    st.lists(st.sampled_from(["fragment", "whole", "progress", "again"]), max_size=30),
    st.randoms(use_true_random=False),
)
def test_any_cutting_delivers_every_event_once_in_order(sizes: list[int], cuts: list[str], dice) -> None:  # type: ignore[no-untyped-def]
    """History cut into messages at will, with repeats: each revision comes whole, once, in order."""
    history = [[put(revision, b"%d" % n) for n in range(size)] for revision, size in enumerate(sizes, 11)]
    progress, got, last = opened(10), [], 10
    for number, revision in enumerate(history):
        messages = [revision]
        if len(revision) > 1 and number < len(cuts) and cuts[number] == "fragment":
            cut = dice.randrange(1, len(revision))
            messages = [revision[:cut], revision[cut:]]
        for piece, part in enumerate(messages):
            said = progress.receive(events(*part, fragment=piece < len(messages) - 1))
            if said is None:
                assert progress.revision == last
            else:
                assert isinstance(said, Batch)
                assert len(said.events) == len(revision)
                got += said.events
                last = said.revision
        if number < len(cuts) and cuts[number] == "again":
            assert progress.receive(events(*revision)) is None
        if number < len(cuts) and cuts[number] == "progress":
            assert progress.receive(wire.WatchResponse(header=header(last))) is None
    wanted = [(event.kv.key, event.kv.mod_revision) for revision in history for event in revision]
    assert [(event.key, event.mod_revision) for event in got] == wanted
