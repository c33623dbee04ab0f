"""What a watch stream says: messages in, complete revisions out. Pure.

The resume point moves by two things only: events of complete revisions, and *timed* progress
notifications that carry the watch's own id. It does not move by the header of the `created` answer
(that is the store's revision *before* the history is sent: believing it loses the history when
the stream breaks in between), nor by an answer to a requested progress (watch id -1; etcd before
3.4.25 sends it ahead of events). Fragments of one answer are joined, part of a revision is never
shown. Events at or below the resume point (a member that fell back behind us) are dropped.
"""

from __future__ import annotations

import msgspec

from edgeproxy.etcd import messages
from edgeproxy.etcd.changes import Batch, Event
from edgeproxy.etcd.errors import HistoryCompacted, HistoryReplaced, translate_cancel


class Created(msgspec.Struct, frozen=True):
    """The server has accepted the watch."""


class Confirmed(msgspec.Struct, frozen=True):
    """Nothing changed up to and including `revision`."""

    revision: int


Said = Created | Confirmed | Batch | None


class Progress:
    """The state of one watch. `revision` is the resume point, `dropped` counts events not passed on."""

    def __init__(self, revision: int, cluster_id: int, endpoint: str) -> None:
        self.revision = revision
        self.dropped = 0
        self._cluster_id = cluster_id
        self._endpoint = endpoint
        self._watch_id: int | None = None
        self._fragments: list[messages.Event] = []

    def receive(self, answer: messages.WatchResponse) -> Said:
        """Take one message; None says nothing (yet).

        Raises HistoryCompacted, HistoryReplaced, or what the server's cancel reason means.
        """
        self._check_identity(answer)
        if answer.canceled:
            raise self._end(answer)
        if answer.created:
            self._watch_id = answer.watch_id
            return Created()
        if answer.watch_id != self._watch_id:
            return None
        if answer.fragment:
            self._fragments.extend(answer.events)
            return None
        if answer.events:
            return self._complete(answer)
        return self._confirm(answer.header.revision)

    def _check_identity(self, answer: messages.WatchResponse) -> None:
        found = answer.header.cluster_id
        if 0 not in (found, self._cluster_id) and found != self._cluster_id:
            raise HistoryReplaced(
                f"etcd at {self._endpoint}: cluster id {found:x} instead of {self._cluster_id:x}"
            )

    def _end(self, answer: messages.WatchResponse) -> Exception:
        if answer.compact_revision:
            message = f"etcd at {self._endpoint}: revision {self.revision + 1} has been compacted"
            return HistoryCompacted(message, answer.compact_revision)
        return translate_cancel(answer.cancel_reason, self._endpoint)

    def _complete(self, answer: messages.WatchResponse) -> Batch | None:
        joined = [*self._fragments, *answer.events]
        self._fragments = []
        events = tuple(_event(event) for event in joined if event.kv.mod_revision > self.revision)
        self.dropped += len(joined) - len(events)
        if not events:
            return None
        self.revision = events[-1].mod_revision
        return Batch(revision=self.revision, events=events)

    def _confirm(self, revision: int) -> Confirmed | None:
        # Between fragments the server sends nothing else; if it did, it would not count.
        if self._fragments or revision <= self.revision:
            return None
        self.revision = revision
        return Confirmed(revision=revision)


def _event(event: messages.Event) -> Event:
    kv = event.kv
    gone = event.type == messages.Event.DELETE
    return Event(
        key=kv.key,
        value=None if gone else kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
    )
