"""All records at one revision, and which services a change of them touches.

For every key the catalog keeps the version in force (see `versions`). Where a bad version is all
that is known, :meth:`Catalog.unresolved` lists the key; the caller reads it back revision by
revision, hands each version to :meth:`Catalog.supply`, or says with :meth:`Catalog.hold` that the
history is gone. What a version in force asks for is entered in the claims, so that two services
never get the same frontend or node port.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter

import msgspec

from edgeproxy.claims import Claim, Claimant, Claims, LostClaim
from edgeproxy.model import Finding, Reason
from edgeproxy.record_keys import BadKey, EndpointKey, ReservedKey, ServiceKey, parse_key
from edgeproxy.records import Service
from edgeproxy.supply import BadRecord, Supplied, Supply
from edgeproxy.versions import (
    GONE,
    Bad,
    EndpointEntry,
    Event,
    KeyValue,
    RecordKey,
    ServiceVersion,
    State,
    Version,
    after,
    findings,
    read,
)

__all__ = ["Catalog", "Counts", "EndpointEntry", "LostClaim", "ServiceEntry"]


class ServiceEntry(msgspec.Struct, frozen=True):
    """A service with its endpoints, those ordered by key."""

    name: str
    key: str
    create_revision: int
    mod_revision: int
    service: Service
    endpoints: tuple[EndpointEntry, ...] = ()


class Counts(msgspec.Struct, frozen=True):
    """How much the catalog holds; `stray` endpoints belong to services that do not exist."""

    services: int
    endpoints: int
    stray: int


class ServiceImage(msgspec.Struct, frozen=True, array_like=True):
    """What is in force for one service name; endpoints may be there without their service.

    endpoints: so many as `count` says; a tuple of them in MessagePack if they came from disk and nobody has
        asked for them since: of most services nobody ever does.
    """

    name: str
    version: ServiceVersion | None
    count: int
    endpoints: tuple[EndpointEntry, ...] | msgspec.Raw

    @property
    def entries(self) -> tuple[EndpointEntry, ...]:
        """The endpoints.

        Raises:
            msgspec.MsgspecError: they are not what is said of them.
        """
        return _ENTRIES.decode(self.endpoints) if isinstance(self.endpoints, msgspec.Raw) else self.endpoints


_ENTRIES = msgspec.msgpack.Decoder(tuple[EndpointEntry, ...])


class CatalogImage(msgspec.Struct, frozen=True):
    """A catalog as it is written down for the next process.

    bad: by key, what can't be used. findings: by key, what was said of it.
    """

    revision: int
    services: tuple[ServiceImage, ...]
    bad: dict[str, Bad]
    findings: dict[str, tuple[Finding, ...]]


class _Group:
    """The records of one service name; endpoints may come before their service."""

    __slots__ = ("_endpoints", "_image", "version")

    def __init__(self, image: ServiceImage | None = None) -> None:
        self.version = image.version if image else None
        self._image = image
        """Where the endpoints are until somebody asks for them."""
        self._endpoints: dict[str, EndpointEntry] = {}

    @property
    def endpoints(self) -> dict[str, EndpointEntry]:
        if self._image is not None:
            self._endpoints = {entry.key: entry for entry in self._image.entries}
            self._image = None
        return self._endpoints

    @property
    def count(self) -> int:
        """How many endpoints there are."""
        return len(self._endpoints) if self._image is None else self._image.count

    def image(self, name: str) -> ServiceImage:
        endpoints = tuple(self._endpoints.values()) if self._image is None else self._image.endpoints
        return ServiceImage(name, self.version, self.count, endpoints)


class Catalog:
    """All records below a prefix, at one revision."""

    def __init__(self, prefix: str) -> None:
        """`prefix` ends in one slash."""
        self._prefix = prefix.encode()
        self._revision = 0
        self._groups: dict[str, _Group] = {}
        self._bad: dict[str, tuple[RecordKey, Bad]] = {}
        self._claims = Claims()
        self._findings: dict[str, tuple[Finding, ...]] = {}
        self._touched: set[str] = set()
        self._moved: set[str] = set()

    @property
    def prefix(self) -> str:
        """What all keys begin with; ends in one slash."""
        return self._prefix.decode()

    @property
    def revision(self) -> int:
        """The revision the catalog is complete for, 0 before the first snapshot."""
        return self._revision

    def replace(self, records: Iterable[KeyValue], revision: int) -> frozenset[str]:
        """Take a complete snapshot; answers the names of the services it changed.

        A key that is bad in the snapshot keeps the version that was in force, unless the key was
        deleted in between (its create revision tells); a newer good version may be worth looking
        for in the store's history, so the key is unresolved.
        """
        seen: set[str] = set()
        for record in records:
            name = _text(record.key)
            seen.add(name)
            key = self._parse(record)
            if key is not None:
                before = self._state(name, key)
                self._commit(name, key, before, after(before, key, record, gap=True))
        for name, key in [*self._missing(seen)]:
            self._commit(name, key, self._state(name, key), GONE)
        for name in self._findings.keys() - seen:
            del self._findings[name]
        self._revision = revision
        return self._settle()

    def apply(self, events: Iterable[Event], revision: int, *, gap: bool = False) -> frozenset[str]:
        """Fold in what happened since; answers the names of the services that differ now.

        What changes and changes back within one call is no change. The events continue the last
        snapshot or call; with `gap` versions of a key may have been left out between them, as when
        only its last one is kept.
        """
        states: dict[str, tuple[RecordKey, State]] = {}
        for event in events:
            key = self._parse(event)
            if key is not None:
                name = _text(event.key)
                known = states.get(name)
                before = known[1] if known else self._state(name, key)
                states[name] = (key, after(before, key, event, gap=gap))
        for name, (key, state) in states.items():
            self._commit(name, key, self._state(name, key), state)
        self._revision = revision
        return self._settle()

    def image(self) -> CatalogImage:
        """A copy of what it holds now."""
        services = tuple(group.image(name) for name, group in self._groups.items())
        bad = {name: bad for name, (_, bad) in self._bad.items()}
        return CatalogImage(self._revision, services, bad, dict(self._findings))

    @classmethod
    def of(cls, prefix: str, image: CatalogImage) -> Catalog:
        """The catalog an image was made of."""
        catalog = cls(prefix)
        catalog._revision = image.revision
        catalog._findings = image.findings
        for service in image.services:
            group = catalog._groups[service.name] = _Group(service)
            catalog._claim(service.name, None, group.version)
        for name, bad in image.bad.items():
            key = parse_key(catalog._prefix, name.encode())
            if isinstance(key, ServiceKey | EndpointKey):
                catalog._bad[name] = (key, bad)
        catalog._claims.settle()
        return catalog

    def services(self) -> tuple[str, ...]:
        """The names of the services that have a version in force, sorted."""
        return tuple(sorted(name for name, group in self._groups.items() if group.version))

    def entry(self, name: str) -> ServiceEntry | None:
        """A service with its endpoints; None if no version of its record is in force."""
        group = self._groups.get(name)
        if group is None or group.version is None:
            return None
        version = group.version
        return ServiceEntry(
            name=name,
            key=version.key,
            create_revision=version.create_revision,
            mod_revision=version.mod_revision,
            service=version.service,
            endpoints=tuple(sorted(group.endpoints.values(), key=attrgetter("key"))),
        )

    def dated(self, finding: Finding) -> Finding:
        """A finding about a version in force, with the mod revision that version has by now.

        A record that is written again unchanged is no change, but it is a newer version.
        """
        key = parse_key(self._prefix, finding.key.encode())
        if not isinstance(key, ServiceKey | EndpointKey):
            return finding
        in_force = self._state(finding.key, key).in_force
        if in_force is None or in_force.mod_revision == finding.revision:
            return finding
        return msgspec.structs.replace(finding, revision=in_force.mod_revision)

    def lost(self, name: str) -> tuple[LostClaim, ...]:
        """What a service asks for that another one has."""
        return self._claims.lost(name)

    def winner(self, claim: Claim) -> str | None:
        """The name of the service that has a frontend or node port; None if nobody claims it."""
        claimant = self._claims.winner(claim)
        return claimant.service if claimant else None

    def findings(self) -> tuple[Finding, ...]:
        """Everything wrong with the records, sorted; the work is that of the findings alone."""
        found = [finding for each in self._findings.values() for finding in each]
        return tuple(sorted([*found, *self._conflicts()]))

    def counts(self) -> Counts:
        """How much the catalog holds."""
        services = endpoints = stray = 0
        for group in self._groups.values():
            services += group.version is not None
            endpoints += group.count
            stray += group.count if group.version is None else 0
        return Counts(services, endpoints, stray)

    def unresolved(self) -> tuple[BadRecord, ...]:
        """The bad records for which the store's history may know a better version, sorted."""
        return tuple(
            BadRecord(name.encode(), bad.sought_below)
            for name, (key, bad) in sorted(self._bad.items(), key=lambda item: item[0])
            if self._state(name, key).pending
        )

    def held(self) -> frozenset[str]:
        """The services of which no kernel object may be removed.

        For one of their keys only bad versions are known, and older ones are still to be read or no
        longer in the store's history. It ends with a good version or a delete, and is a change of
        the service then.
        """
        return frozenset(key.service for name, (key, _) in self._bad.items() if self._state(name, key).held)

    def supply(self, key: bytes, record: KeyValue | None) -> Supplied:
        """Hand in what the store held for an unresolved key at `mod_revision - 1`, None for nothing."""
        name = _text(key)
        parsed, bad = self._bad.get(name, (None, None))
        if parsed is None or bad is None:
            return Supplied(Supply.STALE)
        state = self._state(name, parsed)
        if not state.pending or (record and record.mod_revision >= bad.sought_below):
            return Supplied(Supply.STALE)
        if (
            record is None
            or record.create_revision != bad.create_revision
            or record.mod_revision <= state.floor
        ):
            return self._resolve(name, parsed, state, msgspec.structs.replace(bad, sought_below=0))
        found, _ = read(parsed, record, record.value)
        bad = msgspec.structs.replace(bad, sought_below=0 if found else record.mod_revision)
        return self._resolve(name, parsed, state, bad, found)

    def hold(self, key: bytes) -> frozenset[str]:
        """Note that the history of an unresolved key is compacted: the search is over.

        Without a version in force the key's service is held from now on.
        """
        name = _text(key)
        parsed, bad = self._bad.get(name, (None, None))
        if parsed is None or bad is None or not self._state(name, parsed).pending:
            return frozenset()
        state = self._state(name, parsed)
        bad = msgspec.structs.replace(bad, sought_below=0, held=state.in_force is None)
        return self._resolve(name, parsed, state, bad).changed

    def _resolve(
        self, name: str, key: RecordKey, before: State, bad: Bad, found: Version | None = None
    ) -> Supplied:
        state = State(found or before.in_force, bad)
        self._commit(name, key, before, state)
        outcome = Supply.GOOD if found else Supply.BAD if state.pending else Supply.EXHAUSTED
        return Supplied(outcome, self._settle())

    def _parse(self, event: Event | KeyValue) -> RecordKey | None:
        """Which record a key is; one that fits no grammar is noted, or forgotten, here."""
        match parse_key(self._prefix, event.key):
            case ServiceKey() | EndpointKey() as key:
                return key
            case BadKey(message):
                name = _text(event.key)
                if event.value is None:
                    self._findings.pop(name, None)
                else:
                    found = Finding(name, event.mod_revision, "", Reason.BAD_KEY, message)
                    self._findings[name] = (found,)
            case ReservedKey():
                pass
        return None

    def _missing(self, seen: set[str]) -> Iterator[tuple[str, RecordKey]]:
        """The keys of all records that are not among those seen; some may come twice."""
        for service, group in self._groups.items():
            if group.version and group.version.key not in seen:
                yield group.version.key, ServiceKey(service)
            for name in group.endpoints.keys() - seen:
                yield name, EndpointKey(service, group.endpoints[name].name)
        for name, (key, _) in self._bad.items():
            if name not in seen:
                yield name, key

    def _state(self, name: str, key: RecordKey) -> State:
        """What is known of a key (but not its warnings: those are in the findings)."""
        group = self._groups.get(key.service)
        in_force: Version | None = None
        if group is not None:
            in_force = group.version if isinstance(key, ServiceKey) else group.endpoints.get(name)
        bad = self._bad.get(name) if self._bad else None
        return State(in_force, bad[1] if bad else None)

    def _commit(self, name: str, key: RecordKey, before: State, state: State) -> None:
        """Make a key's new state the known one, and note what differs."""
        if state.bad is not None:
            self._bad[name] = (key, state.bad)
        elif before.bad is not None:
            self._bad.pop(name, None)
        if found := findings(name, state):
            self._findings[name] = found
        elif self._findings:
            self._findings.pop(name, None)
        if before.held != state.held:
            self._touched.add(key.service)
        old, new = before.in_force, state.in_force
        if old is new:
            return
        group = self._groups.setdefault(key.service, _Group())
        if isinstance(key, ServiceKey):
            group.version = new if isinstance(new, ServiceVersion) else None
            self._claim(key.service, old if isinstance(old, ServiceVersion) else None, group.version)
        elif isinstance(new, EndpointEntry):
            group.endpoints[name] = new
        else:
            group.endpoints.pop(name, None)
        if _differ(old, new):
            (self._touched if isinstance(key, ServiceKey) else self._moved).add(key.service)
        if group.version is None and not group.count:
            del self._groups[key.service]

    def _claim(self, service: str, old: ServiceVersion | None, new: ServiceVersion | None) -> None:
        if new is None:
            self._claims.leave(service)
        elif _differ(old, new):
            self._claims.enter(Claimant(new.create_revision, new.key, service), new.service)

    def _settle(self) -> frozenset[str]:
        """The names of all services changed since the last call; stray endpoints change none."""
        touched, moved = self._touched, self._moved
        self._touched, self._moved = set(), set()
        for name in moved:
            group = self._groups.get(name)
            if group and group.version:
                touched.add(name)
        return self._claims.settle() | touched

    def _conflicts(self) -> Iterator[Finding]:
        for name in self._claims.losers():
            group = self._groups.get(name)
            if group is None or group.version is None:
                continue
            for claim in self._claims.lost(name):
                winner = claim.winner_key
                message = f"{claim.claim} belongs to {winner}, which was created earlier: choose another"
                version = group.version
                yield Finding(version.key, version.mod_revision, claim.path, Reason.CONFLICT, message)


def _differ(old: Version | None, new: Version | None) -> bool:
    """Whether a change of version matters; the mod revision alone does not."""
    if isinstance(old, EndpointEntry) and isinstance(new, EndpointEntry):
        return old.endpoint != new.endpoint or old.create_revision != new.create_revision
    if isinstance(old, ServiceVersion) and isinstance(new, ServiceVersion):
        return old.service != new.service or old.create_revision != new.create_revision
    return old is not new


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
