"""Reading bad records back to their last good version: what is sought, and what came of it."""

from __future__ import annotations

import enum

import msgspec


class BadRecord(msgspec.Struct, frozen=True, gc=False):
    """A key whose history may hold a better version: read it at `mod_revision - 1`."""

    key: bytes
    mod_revision: int


class Supply(enum.Enum):
    """What became of an older version that was supplied.

    GOOD: it is in force now, the search is over.
    BAD: it is bad, too; the key stays unresolved, at an older revision.
    EXHAUSTED: there is no better version, the search is over.
    STALE: nothing is sought for this key, or only below the revision supplied.
    """

    GOOD = "good"
    BAD = "bad"
    EXHAUSTED = "exhausted"
    STALE = "stale"


class Supplied(msgspec.Struct, frozen=True):
    """The outcome of :meth:`Catalog.supply` and the names of the services it changed."""

    outcome: Supply
    changed: frozenset[str] = frozenset()
