"""The small pure parts of the client: endpoints, prefixes, back-off, hand-over, messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.etcd import messages as wire
from edgeproxy.etcd.backoff import Backoff
from edgeproxy.etcd.changes import Batch, Cause, Event, Snapshot, coalesce
from edgeproxy.etcd.client import prefix_end
from edgeproxy.etcd.delivery import Delivery
from edgeproxy.etcd.endpoint import Endpoint, parse_endpoint
from edgeproxy.etcd.errors import LoginRefused, Unreachable
from edgeproxy.etcd.settings import EtcdSettings, Timing

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_shipped_descriptor_is_what_the_proto_compiles_to() -> None:
    script = ROOT / "scripts" / "etcd-descriptor"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_wire_is_etcds() -> None:
    """Bytes as etcd's own definition gives them: field numbers times eight plus wire type."""
    request = wire.WatchCreateRequest(
        key=b"a", range_end=b"b", start_revision=5, progress_notify=True, fragment=True
    )
    assert request.SerializeToString() == b"\x0a\x01a\x12\x01b\x18\x05\x20\x01\x40\x01"
    answer = wire.WatchResponse.FromString(b"\x10\x03\x20\x01\x28\x97\x01\x32\x01x\x38\x01")
    assert (answer.watch_id, answer.canceled, answer.compact_revision) == (3, True, 151)
    assert (answer.cancel_reason, answer.fragment) == ("x", True)


@pytest.mark.parametrize(
    ("text", "endpoint", "shown"),
    [
        ("http://127.0.0.1:2379", Endpoint("127.0.0.1", 2379, False), "http://127.0.0.1:2379"),
        ("https://etcd.example", Endpoint("etcd.example", 2379, True), "https://etcd.example:2379"),
        ("10.0.0.1:1234", Endpoint("10.0.0.1", 1234, False), "http://10.0.0.1:1234"),
        ("https://[fd00::1]:2379/", Endpoint("fd00::1", 2379, True), "https://[fd00::1]:2379"),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint, shown: str) -> None:
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://a:1", "expected http:// or https://"),
        ("http://:2379", "host name is missing"),
        ("http://a:99999", "port"),
        ("http://a:x", "port"),
        ("http://a:1/v3", "nothing behind host and port"),
        ("http://user:secret@a:1", "no user or password"),
    ],
)
def test_bad_endpoints(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_endpoint(text)
    assert "secret" not in str(caught.value)


@given(st.binary(min_size=1, max_size=4), st.binary(max_size=5))
def test_prefix_end_parts_what_begins_with_the_prefix_from_the_rest(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    inside = key >= prefix and (end == b"\0" or key < end)
    assert inside == key.startswith(prefix)


def test_settings_do_not_show_the_password() -> None:
    settings = EtcdSettings(username="u", password="open-sesame")
    assert "open-sesame" not in f"{settings!r} {settings}"


def backoff(endpoints: int = 1, chance: float = 0.5) -> Backoff:
    return Backoff(Timing(), endpoints, lambda: chance)


def test_waits_double_up_to_the_most_and_start_over_on_success() -> None:
    waits = backoff()
    away = Unreachable("away")
    assert [waits.failed(away) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    waits.succeeded()
    assert waits.failed(away) == 0.1


@given(st.floats(0, 1, exclude_max=True))
def test_jitter_is_half_of_the_wait_either_way(chance: float) -> None:
    assert 0.05 <= backoff(chance=chance).failed(Unreachable("away")) <= 0.1501
    assert 22.5 <= backoff(chance=chance).failed(LoginRefused("no")) <= 67.5


def test_refusals_are_slow_once_every_endpoint_has_refused() -> None:
    waits = backoff(endpoints=3)
    no, away = LoginRefused("no"), Unreachable("away")
    assert [waits.failed(no), waits.failed(no), waits.failed(no), waits.failed(no)] == [0.1, 0.2, 45.0, 45.0]
    assert waits.failed(away) == 0.4
    assert waits.failed(no) == 0.8


def event(key: bytes, revision: int, value: bytes | None = b"v") -> Event:
    return Event(key=key, value=value, create_revision=1, mod_revision=revision)


def test_coalescing_keeps_the_last_event_of_each_key_in_order() -> None:
    batches = [
        Batch(2, (event(b"a", 2), event(b"b", 2))),
        Batch(3, (event(b"a", 3, None),)),
        Batch(5, (event(b"c", 4), event(b"b", 5))),
    ]
    assert coalesce(batches) == Batch(5, (event(b"a", 3, None), event(b"c", 4), event(b"b", 5)), gap=True)


async def test_delivery_hands_over_all_that_waits() -> None:
    delivery = Delivery(backlog=10)
    first, second = Batch(2, (event(b"a", 2),)), Batch(3, (event(b"a", 3),))
    delivery.put(first)
    delivery.put(second)
    await delivery.wait()
    assert delivery.drain() == [first, second]
    assert delivery.drain() == []


async def test_a_snapshot_makes_what_waits_void() -> None:
    delivery = Delivery(backlog=10)
    delivery.put(Batch(2, (event(b"a", 2),)))
    snapshot = Snapshot(revision=9, records=(), cause=Cause.COMPACTED)
    delivery.put(snapshot)
    after = Batch(10, (event(b"a", 10),))
    delivery.put(after)
    assert delivery.drain() == [snapshot, after]


async def test_a_backlog_stays_bounded_behind_its_snapshot() -> None:
    delivery = Delivery(backlog=5)
    snapshot = Snapshot(revision=1, records=(), cause=Cause.START)
    delivery.put(snapshot)
    for revision in range(2, 200):
        delivery.put(Batch(revision, (event(b"%d" % (revision % 3), revision),)))
        assert len(delivery._waiting) <= 7
    assert delivery.coalesced > 0
    head, *rest = delivery.drain()
    assert head is snapshot
    last = coalesce(change for change in rest if isinstance(change, Batch))
    assert last.revision == 199
    assert [one.mod_revision for one in last.events] == [197, 198, 199]


async def test_who_subscribes_is_told_when_something_begins_to_wait() -> None:
    delivery = Delivery(backlog=5)
    delivery.put(Batch(2, (event(b"a", 2),)))
    told: list[bool] = []
    delivery.subscribe(lambda: told.append(delivery.waiting))
    delivery.put(Batch(3, (event(b"a", 3),)))
    assert told == [True]
    delivery.drain()
    delivery.put(Batch(4, (event(b"a", 4),)))
    assert told == [True, True]
