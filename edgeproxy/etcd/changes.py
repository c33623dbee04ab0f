"""What the store hands to the daemon: a whole state, or what changed since."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """One key as etcd holds it. Revisions are the store's, not the key's version."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int


class Event(msgspec.Struct, frozen=True, gc=False):
    """One change of one key; `value` None is a delete (then `create_revision` is 0)."""

    key: bytes
    value: bytes | None
    create_revision: int
    mod_revision: int


class Cause(enum.StrEnum):
    """Why all records were listed; the label of the re-list metric.

    UNPROVEN: no key was left with which to prove that the history is still ours.
    """

    START = "start"
    COMPACTED = "compacted"
    REPLACED = "history replaced"
    UNPROVEN = "history unproven"
    AUDIT = "audit"


class Snapshot(msgspec.Struct, frozen=True):
    """Every key below the prefix at `revision`; it replaces all that was delivered before."""

    revision: int
    records: tuple[KeyValue, ...]
    cause: Cause


class Batch(msgspec.Struct, frozen=True):
    """The changes of one or more complete revisions, oldest first; `revision` is the last one.

    gap: versions of a key may be left out, as where only the last one is known. The mod revision of
        a delete is then that of the batch.
    """

    revision: int
    events: tuple[Event, ...]
    gap: bool = False


Change = Snapshot | Batch


class Compacted(msgspec.Struct, frozen=True):
    """The answer "that revision is gone": etcd has compacted it away."""

    revision: int


def coalesce(batches: Iterable[Batch]) -> Batch:
    """Several batches as one: of each key only its last event, still ordered by revision.

    For a consumer that is far behind; it loses the versions in between.
    """
    revision = 0
    last: dict[bytes, Event] = {}
    for batch in batches:
        revision = batch.revision
        for event in batch.events:
            # Insertion order is the order of the result, so a newer event must move to the end.
            last.pop(event.key, None)
            last[event.key] = event
    return Batch(revision=revision, events=tuple(last.values()), gap=True)
