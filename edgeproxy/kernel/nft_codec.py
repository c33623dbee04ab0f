"""Elements of our nft sets as netfilter netlink messages, and back: bytes and values, no socket.

Theory of operation
-------------------
A change is one datagram: NFNL_MSG_BATCH_BEGIN, any number of NFT_MSG_DELSETELEM and
NFT_MSG_NEWSETELEM messages, NFNL_MSG_BATCH_END. The kernel takes all of it or nothing. A message
carries many elements of one set, as far as the 16 bit length of an attribute goes. An element is

    NFTA_LIST_ELEM { KEY { VALUE }, [KEY_END { VALUE }], [DATA { VERDICT | VALUE }], [TIMEOUT], [USERDATA] }

where the value of a concatenated key is its fields in order, each padded to four bytes, numbers
in network order. A comment lives in USERDATA as libnftables writes it, so that `nft list` shows it:
one byte type, one byte length, the text and a NUL. Which fields a set has is data: :data:`~edgeproxy.kernel.nft_sets.SETS`.

Sources: include/uapi/linux/netfilter/nf_tables.h and nf_tables_api.c of the kernel, udata.h of libnftnl.
"""

from __future__ import annotations

import enum
import functools
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

import msgspec

from edgeproxy.address import Address
from edgeproxy.kernel.netlink import (
    MalformedError,
    attribute,
    attributes,
    be32,
    be64,
    big_endian,
    nested,
    string,
    walk,
)
from edgeproxy.kernel.nft_sets import COMMENT_LIMIT, SETS, TABLE, Family, Field, SetType
from edgeproxy.model import Element, Protocol, SetName

_MESSAGE = 32 << 10
"""Bytes of elements per message; an attribute can't exceed 65,535."""


class Command(enum.IntEnum):
    """NFT_MSG_*."""

    GET_TABLE = 1
    NEW_CHAIN = 3
    GET_CHAIN = 4
    NEW_RULE = 6
    GET_RULE = 7
    NEW_SET = 9
    GET_SET = 10
    NEW_ELEMENTS = 12
    GET_ELEMENTS = 13
    DELETE_ELEMENTS = 14
    NEW_GENERATION = 15
    GET_GENERATION = 16


# Attribute types of nf_tables.h.
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ITEM = 1
_KEY, _DATA, _TIMEOUT, _EXPIRATION, _USERDATA, _KEY_END = 1, 2, 4, 5, 6, 10
_VALUE, _VERDICT = 1, 2
_CODE, _CHAIN = 1, 2
_GENERATION_ID, _PROCESS_NAME = 1, 3
_UDATA_COMMENT = 0

_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 16, 17
_BATCH_GENERATION = 1
_NESTED = 0x8000
_HEADER = struct.Struct("=HH")
_VERDICTS = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
_GOTO = -4
_PROTOCOLS: dict[int, Protocol] = {int(protocol): protocol for protocol in Protocol}

Part = Address | Protocol | int


_LENGTHS = {Field.IPV4: 4, Field.IPV6: 16}


class Layout:
    """The compiled form of one set type: what is the same for all of its elements."""

    __slots__ = ("data", "end_head", "key_head", "lengths", "pack", "protocol", "ranges", "size", "unpack")

    def __init__(self, kind: SetType) -> None:
        form = struct.Struct(">" + "".join(field.value for field in kind.key))
        self.size = form.size
        self.pack: Callable[..., bytes] = form.pack
        self.unpack: Callable[[bytes], tuple[Part, ...]] = form.unpack
        inner = _HEADER.pack(4 + form.size, _VALUE)
        self.key_head = _HEADER.pack(8 + form.size, _KEY | _NESTED) + inner
        self.end_head = _HEADER.pack(8 + form.size, _KEY_END | _NESTED) + inner
        self.ranges = kind.ranges
        self.data = kind.data
        # struct cuts and pads byte strings without a word.
        self.lengths = [(at, _LENGTHS[field]) for at, field in enumerate(kind.key) if field in _LENGTHS]
        self.protocol = kind.key.index(Field.PROTOCOL) if Field.PROTOCOL in kind.key else -1

    def value(self, key: tuple[Part, ...]) -> bytes:
        """The value of a key.

        Raises:
            TypeError, struct.error: its fields are not those of the set.
        """
        for at, length in self.lengths:
            # A number has no length, which is a TypeError too.
            if len(key[at]) != length:  # type: ignore[arg-type]
                raise TypeError(f"field {at + 1} is no address of {length} bytes")
        return self.pack(*key)

    def fields(self, value: bytes) -> tuple[Part, ...]:
        """The fields of a key value."""
        fields = self.unpack(value)
        at = self.protocol
        if at < 0:
            return fields
        number = fields[at]
        assert isinstance(number, int)
        return (*fields[:at], _PROTOCOLS.get(number, number), *fields[at + 1 :])


LAYOUTS: Mapping[SetName, Layout] = {name: Layout(kind) for name, kind in SETS.items()}


class Held(msgspec.Struct, frozen=True, gc=False):
    """An element as the kernel holds it; `remaining` is the seconds until it expires, None for never."""

    element: Element
    remaining: float | None = None


class Change(msgspec.Struct, frozen=True):
    """One message of a batch: which elements it carries and where each begins, to name a refused one.

    `starts` are byte offsets from the start of the netlink message.
    """

    command: Command
    set: SetName
    elements: tuple[Element, ...]
    starts: tuple[int, ...]
    payload: bytes

    def at(self, offset: int) -> Element | None:
        """The element at a byte offset of the message; None where the kernel named none and there are many."""
        if len(self.elements) == 1:
            return self.elements[0]
        before = [e for e, start in zip(self.elements, self.starts, strict=True) if start <= offset]
        return before[-1] if offset > 0 and before else None


# -- requests ----------------------------------------------------------------------------------


def header(family: int, resource: int = 0) -> bytes:
    """The fixed header of netfilter netlink, `struct nfgenmsg`."""
    return struct.pack(">BBH", family, 0, resource)


def kind(command: Command) -> int:
    """The netlink message type of a command."""
    return _SUBSYSTEM | command


def begin(generation: int = 0) -> tuple[int, bytes]:
    """Type and payload of a batch's first message.

    generation: refuse the batch (ERESTART) unless this is the rule set's generation; 0 for any.
    """
    wanted = be32(_BATCH_GENERATION, generation) if generation else b""
    return _BATCH_BEGIN, header(Family.UNSPECIFIED, _SUBSYSTEM >> 8) + wanted


def end() -> tuple[int, bytes]:
    """Type and payload of a batch's last message."""
    return _BATCH_END, header(Family.UNSPECIFIED, _SUBSYSTEM >> 8)


def list_head(name: SetName) -> bytes:
    """Header, table and set: how a message on elements begins, and the whole of a request to dump them."""
    family = SETS[name].family
    return header(family) + string(_LIST_TABLE, TABLE) + string(_LIST_SET, name)


def changes(
    command: Command, elements: Sequence[Element], timeouts: Mapping[Element, float]
) -> Iterator[Change]:
    """The messages that add or delete elements, grouped by set.

    Raises:
        ValueError: an element that does not fit the type of its set: a bug.
    """
    by_set: dict[SetName, list[Element]] = {}
    for element in elements:
        by_set.setdefault(element.set, []).append(element)
    for name in sorted(by_set):
        yield from _messages(command, name, by_set[name], timeouts)


def _messages(
    command: Command, name: SetName, elements: list[Element], timeouts: Mapping[Element, float]
) -> Iterator[Change]:
    layout, head = LAYOUTS[name], list_head(name)
    first = 16 + len(head) + 4
    new = command is Command.NEW_ELEMENTS
    bodies = [_encode(layout, element, new, timeouts) for element in elements]
    bounds = [0, *accumulate(map(len, bodies))]
    start = 0
    while start < len(bodies):
        end = max(start + 1, bisect_right(bounds, bounds[start] + _MESSAGE) - 1)
        yield Change(
            command,
            name,
            tuple(elements[start:end]),
            tuple(map((first - bounds[start]).__add__, bounds[start:end])),
            head + nested(_LIST_ELEMENTS, *bodies[start:end]),
        )
        start = end


def _encode(layout: Layout, element: Element, new: bool, timeouts: Mapping[Element, float]) -> bytes:
    try:
        parts = [layout.key_head, layout.value(element.key)]
        if layout.ranges:
            parts += (layout.end_head, layout.value(element.until))
        elif element.until:
            raise ValueError(f"{element}: set {element.set} holds no ranges")
        if new:
            if layout.data is Field.VERDICT:
                parts.append(_goto(element.verdict))
            elif layout.data is not None:
                if len(element.data) != _LENGTHS[layout.data]:
                    raise TypeError(f"its data is no address of {_LENGTHS[layout.data]} bytes")
                parts.append(nested(_DATA, attribute(_VALUE, element.data)))
            if timeouts and (timeout := timeouts.get(element)):
                parts.append(be64(_TIMEOUT, max(1, round(timeout * 1000))))
            if element.comment:
                parts.append(_userdata(element.comment))
    except (struct.error, TypeError, IndexError) as error:
        raise ValueError(f"{element} does not fit the type of set {element.set}: {error}") from None
    body = b"".join(parts)
    return _HEADER.pack(4 + len(body), _LIST_ITEM | _NESTED) + body


@functools.lru_cache(maxsize=64)
def _goto(verdict: str) -> bytes:
    if not verdict:
        raise TypeError("an element of a verdict map needs a verdict")
    chain = string(_CHAIN, verdict)
    return nested(_DATA, nested(_VERDICT, be32(_CODE, _GOTO & 0xFFFFFFFF), chain))


@functools.lru_cache(maxsize=64)
def _userdata(comment: str) -> bytes:
    """The attribute of a comment; the elements of one service have the same."""
    text = comment.encode() + b"\0"
    if len(text) > COMMENT_LIMIT + 1:
        raise TypeError(f"a comment has at most {COMMENT_LIMIT} bytes, this one {len(text) - 1}")
    return attribute(_USERDATA, bytes((_UDATA_COMMENT, len(text))) + text)


# -- answers -----------------------------------------------------------------------------------


class Decoder:
    """Reads the elements of one set out of NFT_MSG_NEWSETELEM payloads.

    Comments and verdicts repeat, so their decoded forms are kept by their bytes.
    """

    def __init__(self, name: SetName) -> None:
        self._name = name
        self._layout = LAYOUTS[name]
        self._comments: dict[bytes, str] = {b"": ""}
        self._verdicts: dict[bytes, str] = {b"": ""}

    def read(self, payload: bytes) -> Iterator[Held]:
        """The elements of one message.

        Raises:
            MalformedError: bytes that do not fit the set's type: another program made it differently.
        """
        for where, value in walk(payload, 4):
            if where == _LIST_ELEMENTS:
                for _, body in walk(value):
                    yield self._element(body)

    def _element(self, body: bytes) -> Held:
        layout = self._layout
        key = end = data = userdata = b""
        remaining: float | None = None
        for where, value in walk(body):
            if where == _KEY:
                key = value
            elif where == _DATA:
                data = value
            elif where == _USERDATA:
                userdata = value
            elif where == _KEY_END:
                end = value
            elif where == _EXPIRATION:
                remaining = big_endian(value) / 1000
        if len(key) != 4 + layout.size or (end and len(end) != 4 + layout.size):
            raise MalformedError(f"set {self._name} holds a key of {len(key) - 4} bytes, not {layout.size}")
        fields = layout.fields(key[4:])
        until = (layout.fields(end[4:]) if end else fields) if layout.ranges else ()
        verdict, address = "", b""
        if layout.data is Field.VERDICT:
            found = self._verdicts.get(data)
            verdict = self._verdicts.setdefault(data, verdict_text(data)) if found is None else found
        elif layout.data is not None:
            address = data[4:]
        comment = self._comments.get(userdata)
        if comment is None:
            comment = self._comments.setdefault(userdata, comment_text(userdata))
        return Held(Element(self._name, fields, verdict, Address(address), comment, until), remaining)


def verdict_text(data: bytes) -> str:
    """The chain of a goto; any other verdict in nft's words (`drop`, `jump x`): no chain can have such a name."""
    inner = attributes(attributes(data).get(_VERDICT, b""))
    code = struct.unpack(">i", inner.get(_CODE, b"\0\0\0\0"))[0]
    chain = inner.get(_CHAIN, b"").rstrip(b"\0").decode("utf-8", "replace")
    if code == _GOTO:
        return chain
    return f"{_VERDICTS.get(code, f'verdict {code}')} {chain}".rstrip()


def comment_text(userdata: bytes) -> str:
    """The comment in an element's user data, "" if there is none."""
    at = 0
    while at + 2 <= len(userdata):
        length = userdata[at + 1]
        if userdata[at] == _UDATA_COMMENT:
            return userdata[at + 2 : at + 2 + length].rstrip(b"\0").decode("utf-8", "replace")
        at += 2 + length
    return ""


class Generation(msgspec.Struct, frozen=True, gc=False):
    """The rule set's generation: `number` grows by one with every change by anybody in this namespace.

    program: name of the process that made it; in an answer to a question, of the one that asks.
    """

    number: int
    program: str = ""


def generation(payload: bytes) -> Generation:
    """What an NFT_MSG_NEWGEN says."""
    found = attributes(payload, 4)
    name = found.get(_PROCESS_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
    return Generation(big_endian(found.get(_GENERATION_ID, b"")), name)
