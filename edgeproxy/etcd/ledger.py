"""What has been delivered so far, and whether the store still agrees with it. Pure.

For each key the ledger keeps its mod revision and a checksum of its value, packed into one integer:
100,000 keys cost about 10 MB less than a small object each would.

**Is this history still ours?** After a restore from a backup a store can have the same cluster id, a
revision that has overtaken ours and other contents: comparing numbers does not see it. So before a
watch is resumed at L + 1, a few keys are read *at revision L*, our last one, and must read exactly as
we know them. Reading at L, not at the key's own mod revision, has a reason: timed progress
notifications move L along while a prefix is quiet, so a compaction that has long passed the last
put does not force a list on every reconnect.

Two probes say most: the live key that changed last, and, if a delete came after it, that key,
which must be absent at L.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import msgspec

from edgeproxy.etcd.changes import Batch, Event, KeyValue, Snapshot

_CHECKSUM_BITS = 32


class Probe(msgspec.Struct, frozen=True):
    """A key to read at `revision`; `entry` is what it must read as, None for absent."""

    key: bytes
    revision: int
    entry: int | None


class LedgerImage(msgspec.Struct, frozen=True):
    """A ledger as it is written down for the next process; see :class:`Ledger`."""

    revision: int
    cluster_id: int
    entries: dict[bytes, int]
    last_delete: tuple[int, bytes]


def entry_of(mod_revision: int, value: bytes) -> int:
    """The ledger's view of one key: changes whenever its mod revision or value does."""
    return mod_revision << _CHECKSUM_BITS | crc32(value)


class Ledger:
    """Key -> entry at `revision`, the resume point: everything up to it has been delivered.

    `cluster_id` is the one of the last accepted list, 0 while unknown (a grpc-proxy sends 0).
    """

    def __init__(self) -> None:
        self.revision = 0
        self.cluster_id = 0
        self._entries: dict[bytes, int] = {}
        self._last_delete: tuple[int, bytes] = (0, b"")
        self._touched: set[bytes] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def image(self) -> LedgerImage:
        """A copy of what it holds now."""
        return LedgerImage(self.revision, self.cluster_id, dict(self._entries), self._last_delete)

    @classmethod
    def of(cls, image: LedgerImage) -> Ledger:
        """The ledger an image was made of; it takes the image's entries over."""
        ledger = cls()
        ledger.revision, ledger.cluster_id = image.revision, image.cluster_id
        ledger._entries, ledger._last_delete = image.entries, image.last_delete
        return ledger

    def entry(self, key: bytes) -> int | None:
        """What was last delivered of this key, None if it is absent."""
        return self._entries.get(key)

    def keys(self) -> set[bytes]:
        """All keys known now, as a set of its own."""
        return set(self._entries)

    def replace(self, snapshot: Snapshot, cluster_id: int) -> None:
        """Start over from a whole state."""
        self._entries = {
            record.key: entry_of(record.mod_revision, record.value) for record in snapshot.records
        }
        self._last_delete = (0, b"")
        self.revision = snapshot.revision
        self.cluster_id = cluster_id

    def apply(self, batch: Batch) -> None:
        """Fold in complete revisions."""
        for event in batch.events:
            if event.value is None:
                self._entries.pop(event.key, None)
                self._last_delete = (event.mod_revision, event.key)
            else:
                self._entries[event.key] = entry_of(event.mod_revision, event.value)
        if self._touched is not None:
            self._touched.update(event.key for event in batch.events)
        self.revision = batch.revision

    def advance(self, revision: int) -> None:
        """The store has confirmed that nothing below the prefix changed up to `revision`."""
        self.revision = max(self.revision, revision)

    def watch_touched(self) -> set[bytes]:
        """From now on, until `forget_touched`, collect the keys that events change in this set."""
        self._touched = set()
        return self._touched

    def forget_touched(self) -> None:
        """Stop collecting."""
        self._touched = None

    def probes(self) -> tuple[Probe, ...]:
        """What to read to prove that the history is ours; empty: nothing could prove it."""
        if not self._entries:
            return ()
        key, entry = max(self._entries.items(), key=lambda item: item[1])
        probes = [Probe(key=key, revision=self.revision, entry=entry)]
        deleted_at, deleted = self._last_delete
        if deleted_at > entry >> _CHECKSUM_BITS and deleted not in self._entries:
            probes.append(Probe(key=deleted, revision=self.revision, entry=None))
        return tuple(probes)

    def agrees(self, cluster_id: int, revision: int, asked_at: int) -> bool:
        """Whether a linearizable answer's header can come from the history we follow.

        asked_at: the resume point when the question was sent; the stream may have moved on since.
        """
        same_cluster = 0 in (cluster_id, self.cluster_id) or cluster_id == self.cluster_id
        return same_cluster and (revision == 0 or revision >= asked_at)


def proves(probe: Probe, found: KeyValue | None) -> bool:
    """Whether the store read back what the probe expects."""
    return probe.entry == (None if found is None else entry_of(found.mod_revision, found.value))


class Difference:
    """What a list of the store's records says that the ledger does not, as one batch.

    Most records of a store are the same before and after an outage: those are neither kept in memory
    here nor decoded by the consumer. The ledger must not change meanwhile.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._unseen: set[bytes] = set()
        self._puts: list[Event] = []

    def begin(self) -> None:
        """Forget what was compared: a list starts from its first page."""
        self._unseen = self._ledger.keys()
        self._puts = []

    def compare(self, records: Iterable[KeyValue]) -> None:
        """Take in one page of the list."""
        for record in records:
            self._unseen.discard(record.key)
            if self._ledger.entry(record.key) != entry_of(record.mod_revision, record.value):
                event = Event(record.key, record.value, record.create_revision, record.mod_revision)
                self._puts.append(event)

    def keys_if_none_is_gone(self) -> int:
        """How many keys the store has now if none was deleted."""
        return len(self._ledger) + sum(self._ledger.entry(put.key) is None for put in self._puts)

    def puts(self, revision: int) -> Batch:
        """The records that are new or another, by age; for a list that leaves out the unchanged ones."""
        return Batch(revision, tuple(sorted(self._puts, key=_age)), gap=True)

    def batch(self, revision: int) -> Batch:
        """The same, and the keys that are gone; for a complete list."""
        gone = (Event(key, None, 0, revision) for key in sorted(self._unseen))
        return Batch(revision, (*self.puts(revision).events, *gone), gap=True)


def _age(event: Event) -> int:
    return event.mod_revision


class Audit:
    """Compares a full list, page by page, with a ledger that goes on changing meanwhile.

    A key differs only if the list says something else than the ledger *and* no event has come
    for it since the audit began: an event in flight explains any difference.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._touched = ledger.watch_touched()
        self._unseen = ledger.keys()
        self._suspects: set[bytes] = set()

    def compare(self, records: Iterable[KeyValue]) -> None:
        """Take in one page of the list."""
        for record in records:
            self._unseen.discard(record.key)
            if self._ledger.entry(record.key) != entry_of(record.mod_revision, record.value):
                self._suspects.add(record.key)

    def differences(self) -> list[bytes]:
        """The keys that differ as of now, sorted; call again later to let events arrive."""
        return sorted((self._suspects | self._unseen) - self._touched)

    def close(self) -> None:
        """The audit is over, finished or not."""
        self._ledger.forget_touched()
