"""A fingerprint of the frame of our tables: chains, rules, sets and constant elements.

Loaded twice, the same script gives the same fingerprint, on one kernel: what the kernel counts or
numbers by itself (handles, use counts, packet counters, names of anonymous sets) is left out, and
an anonymous set is named by its content instead. Elements of the sets that records fill
(:data:`~edgeproxy.kernel.nft_sets.SETS`) do not count; those of interval and anonymous sets, which
come with the script, do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from edgeproxy.kernel.netlink import Attributes, attribute, attributes, big_endian, text, walk
from edgeproxy.kernel.nft_sets import SETS

# Attribute types of nf_tables.h. The table's name is attribute 1 of every kind of object.
_TABLE = 1
_TABLE_USE, _TABLE_HANDLE = 3, 4
_TABLE_VOLATILE = frozenset({_TABLE_USE, _TABLE_HANDLE})
_CHAIN_HANDLE, _CHAIN_USE, _CHAIN_COUNTERS, _CHAIN_ID = 2, 6, 8, 11
_CHAIN_VOLATILE = frozenset({_CHAIN_HANDLE, _CHAIN_USE, _CHAIN_COUNTERS, _CHAIN_ID})
_RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_POSITION, _RULE_ID = 2, 3, 4, 6, 9
_RULE_VOLATILE = frozenset({_RULE_HANDLE, _RULE_POSITION, _RULE_ID, _RULE_EXPRESSIONS})
_SET_NAME, _SET_FLAGS, _SET_ID, _SET_HANDLE = 2, 3, 10, 16
_SET_TYPE, _SET_COUNT = 19, 20  # added by newer kernels; the count is of elements
_SET_VOLATILE = frozenset({_SET_ID, _SET_HANDLE, _SET_TYPE, _SET_COUNT})
_ANONYMOUS, _INTERVAL = 0x1, 0x4
_LIST_ELEMENTS = 3
_ELEMENT_KEY, _ELEMENT_FLAGS = 1, 3
_INTERVAL_END = 0x1
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_LOOKUP_SET, _LOOKUP_SET_ID = 1, 4
_COUNTING = frozenset({"counter", "quota", "last", "connlimit"})


class SetEntry(msgspec.Struct, frozen=True):
    """A set as the kernel dumps it: its name, flags and attributes (the payload of NFT_MSG_NEWSET)."""

    name: str
    flags: int
    attributes: Attributes

    @property
    def anonymous(self) -> bool:
        """Whether it belongs to one rule and its name means nothing."""
        return bool(self.flags & _ANONYMOUS)

    @property
    def constant(self) -> bool:
        """Whether its elements are part of the frame."""
        return self.anonymous or (bool(self.flags & _INTERVAL) and self.name not in SETS)


def set_entry(payload: bytes) -> SetEntry:
    """The set an NFT_MSG_NEWSET describes."""
    found = attributes(payload, 4)
    return SetEntry(text(found[_SET_NAME]), big_endian(found.get(_SET_FLAGS, b"")), found)


def table_of(payload: bytes) -> str:
    """The table an object's message belongs to."""
    return text(attributes(payload, 4).get(_TABLE, b""))


def list_items(payload: bytes) -> Iterator[bytes]:
    """The elements of an NFT_MSG_NEWSETELEM, each as it is on the wire."""
    for kind, listed in walk(payload, 4):
        if kind == _LIST_ELEMENTS:
            for _, item in walk(listed):
                yield item


class Parts(msgspec.Struct, frozen=True):
    """Payloads of one table's dumps. `elements`: list items of each constant set, by the set's name."""

    table: bytes
    chains: tuple[bytes, ...]
    rules: tuple[bytes, ...]
    sets: tuple[SetEntry, ...]
    elements: Mapping[str, tuple[bytes, ...]]


def fingerprint(tables: Iterable[Parts]) -> str:
    """Hexadecimal digest over all tables, equal exactly if their frames are."""
    digest = hashlib.blake2b(digest_size=16)
    for parts in tables:
        for line in _lines(parts):
            digest.update(len(line).to_bytes(4))
            digest.update(line)
    return digest.hexdigest()


def _lines(parts: Parts) -> Iterator[bytes]:
    contents = {entry.name: _content(entry, parts.elements.get(entry.name, ())) for entry in parts.sets}
    anonymous = {entry.name: contents[entry.name] for entry in parts.sets if entry.anonymous}
    yield b"table" + _stable(attributes(parts.table, 4), _TABLE_VOLATILE)
    yield from sorted(b"set" + content for content in contents.values())
    yield from sorted(b"chain" + _stable(attributes(chain, 4), _CHAIN_VOLATILE) for chain in parts.chains)
    # Order of rules matters inside a chain only, and the chain's name is part of the line.
    rules: dict[str, list[bytes]] = {}
    for rule in parts.rules:
        found = attributes(rule, 4)
        line = _stable(found, _RULE_VOLATILE)
        expressions = b"".join(_expressions(found.get(_RULE_EXPRESSIONS, b""), anonymous))
        rules.setdefault(text(found.get(_RULE_CHAIN, b"")), []).append(b"rule" + line + expressions)
    for chain in sorted(rules):
        yield from rules[chain]


def _content(entry: SetEntry, elements: tuple[bytes, ...]) -> bytes:
    skip = _SET_VOLATILE | {_SET_NAME} if entry.anonymous else _SET_VOLATILE
    digest = hashlib.blake2b(_stable(entry.attributes, skip), digest_size=16)
    for element in sorted(e for e in elements if not _opening_mark(e)):
        digest.update(len(element).to_bytes(4))
        digest.update(element)
    return digest.digest()


def _opening_mark(element: bytes) -> bool:
    """Whether it ends an interval at key 0, where none can have begun: nft adds it when it refills a set."""
    found = attributes(element)
    ends = big_endian(found.get(_ELEMENT_FLAGS, b"")) & _INTERVAL_END
    return bool(ends) and not any(attributes(found.get(_ELEMENT_KEY, b"")).get(1, b"\1"))


def _expressions(listed: bytes, anonymous: Mapping[str, bytes]) -> Iterator[bytes]:
    for _, expression in walk(listed):
        found = attributes(expression)
        name = text(found.get(_EXPRESSION_NAME, b""))
        yield name.encode() + b"("
        if name in _COUNTING:
            continue
        data = found.get(_EXPRESSION_DATA, b"")
        if name != "lookup":
            yield data
            continue
        looked_up = attributes(data)
        target = text(looked_up.get(_LOOKUP_SET, b""))
        yield anonymous.get(target, target.encode())
        yield _stable(looked_up, frozenset({_LOOKUP_SET, _LOOKUP_SET_ID}))


def _stable(found: Attributes, skip: frozenset[int]) -> bytes:
    return b"".join(attribute(kind, value) for kind, value in sorted(found.items()) if kind not in skip)
