"""Which version of a record is in force.

A bad version never displaces a good one; only a good version or a delete does. Where a bad version
is all that is known, older ones may still be in the store's history and are worth looking for.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from edgeproxy.model import Finding, Reason
from edgeproxy.record_endpoint import endpoint_from_value
from edgeproxy.record_keys import EndpointKey, ServiceKey
from edgeproxy.record_service import service_from_json
from edgeproxy.records import Endpoint, Problem, Service


class KeyValue(Protocol):
    """A record as the store holds it."""

    @property
    def key(self) -> bytes: ...
    @property
    def value(self) -> bytes: ...
    @property
    def create_revision(self) -> int: ...
    @property
    def mod_revision(self) -> int: ...


class Event(Protocol):
    """A put, or a delete: then `value` is None and only `key` and `mod_revision` count."""

    @property
    def key(self) -> bytes: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def create_revision(self) -> int: ...
    @property
    def mod_revision(self) -> int: ...


class EndpointEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The version of an endpoint record that is in force."""

    key: str
    create_revision: int
    mod_revision: int
    endpoint: Endpoint

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]


class ServiceVersion(msgspec.Struct, frozen=True, array_like=True):
    """The version of a service record that is in force."""

    key: str
    create_revision: int
    mod_revision: int
    service: Service


Version = ServiceVersion | EndpointEntry
RecordKey = ServiceKey | EndpointKey


class Bad(msgspec.Struct, frozen=True):
    """The newest version of a key, which can't be used.

    sought_below: a good version is sought below this revision; 0 once that is over.
    held: the history is gone, so nobody knows what the kernel's objects for this key should be.
    """

    create_revision: int
    mod_revision: int
    problems: tuple[Problem, ...]
    sought_below: int = 0
    held: bool = False


class State(msgspec.Struct, frozen=True, gc=False):
    """What is known of one key: the version in force, and the newest one if that is bad."""

    in_force: Version | None = None
    bad: Bad | None = None
    warnings: tuple[Problem, ...] = ()

    @property
    def floor(self) -> int:
        """Below this revision nothing better can be found."""
        return self.in_force.mod_revision if self.in_force else 0

    @property
    def pending(self) -> bool:
        """Whether the store's history may hold a better version than the one in force."""
        bad = self.bad
        return bad is not None and bad.sought_below > max(bad.create_revision, self.floor + 1)

    @property
    def held(self) -> bool:
        """Whether nothing good is known although there once may have been something."""
        return self.bad is not None and self.in_force is None and (self.bad.held or self.pending)


GONE = State()


def after(before: State, key: RecordKey, event: Event | KeyValue, *, gap: bool) -> State:
    """The state of a key after an event; `gap` if there may be unknown versions before this one.

    A version in force belongs to one life of its key, from put to delete: a bad version with
    another create revision does not inherit it.
    """
    if event.value is None:
        return GONE
    version, problems = read(key, event, event.value)
    if version is not None:
        return State(version, None, problems)
    created, modified = event.create_revision, event.mod_revision
    in_force, bad = before.in_force, before.bad
    if in_force and in_force.create_revision != created:
        in_force = None
    if bad and bad.create_revision == created and (not gap or bad.mod_revision == modified):
        return State(in_force, msgspec.structs.replace(bad, mod_revision=modified, problems=problems))
    sought_below = modified if gap or in_force is None else 0
    return State(in_force, Bad(created, modified, problems, sought_below))


def read(key: RecordKey, event: Event | KeyValue, value: bytes) -> tuple[Version | None, tuple[Problem, ...]]:
    """A version of a record, None if it can't be used, and all its problems."""
    text, created, modified = event.key.decode(), event.create_revision, event.mod_revision
    if created == modified:
        modified = created  # One integer less for each of a hundred thousand records.
    if isinstance(key, ServiceKey):
        service = service_from_json(value)
        if service.record is None:
            return None, service.problems
        return ServiceVersion(text, created, modified, service.record), service.problems
    endpoint = endpoint_from_value(value)
    if endpoint.record is None:
        return None, endpoint.problems
    return EndpointEntry(text, created, modified, endpoint.record), endpoint.problems


def findings(key: str, state: State) -> tuple[Finding, ...]:
    """What an operator should know about a key in this state."""
    bad = state.bad
    if bad is None:
        if not state.warnings:
            return ()
        return tuple(
            Finding(key, state.floor, problem.path, problem.reason, problem.message)
            for problem in state.warnings
        )
    if state.in_force:
        outcome = f"revision {state.floor} stays in force"
    else:
        outcome = "the record is left out until it is mended"
    found = [
        Finding(key, bad.mod_revision, problem.path, problem.reason, f"{problem.message}; {outcome}")
        for problem in bad.problems
    ]
    if bad.held and state.held:
        message = (
            "its older versions are compacted away, so what the kernel has for it is left as it is:"
            " put a good version or delete the key"
        )
        found.append(Finding(key, bad.mod_revision, "", Reason.HELD, message))
    return tuple(found)
