"""Netlink framing: bytes in, values out, no socket anywhere.

A netlink datagram is a row of messages, each a 16 byte header (`struct nlmsghdr`) and a
payload; payloads of the families we speak are a small fixed header and a row of attributes
(`struct nlattr`: length, type, value), everything aligned to four bytes. Numbers are in host
byte order unless a family says otherwise. The constants are those of the kernel's
`include/uapi/linux/netlink.h`.

A request asks for an acknowledgement with `ACK`; an error is reported whether it was asked for
or not, and the kernel goes on with the next message of the datagram after an error
(`netlink_rcv_skb`). So many requests travel in one datagram and only the last asks.

Errors:

    NetlinkError            anything that went wrong between us and the kernel
    ├── RefusedError        the kernel answered a request with an error number
    ├── OverrunError        the receive queue was full: answers are lost, their outcome unknown
    └── MalformedError      bytes that are not netlink: a bug on one of the two sides
"""

from __future__ import annotations

import enum
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from itertools import repeat

import msgspec

HEADER_LENGTH = 16
GENERIC_HEADER_LENGTH = 4
_ERROR_HEAD = 4 + HEADER_LENGTH
NESTED = 0x8000
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_GENERIC = struct.Struct("=BBH")
_I32 = struct.Struct("=i")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")

_ATTRIBUTE_U8 = struct.Struct("=HHB3x")
_ATTRIBUTE_U16 = struct.Struct("=HHH2x")
_ATTRIBUTE_U32 = struct.Struct("=HHI")
_ATTRIBUTE_U64 = struct.Struct("=HHQ")
_ATTRIBUTE_BE16 = struct.Struct(">H2x")
_ATTRIBUTE_BE32 = struct.Struct(">I")
_ATTRIBUTE_BE64 = struct.Struct(">Q")

Attributes = dict[int, bytes]
"""Attribute type to value. A type that occurs twice keeps its last value, as in the kernel."""


class Flag(enum.IntFlag):
    """NLM_F_*: header flags. Several bits have another meaning per kind of message."""

    REQUEST = 0x1
    MULTI = 0x2
    ACK = 0x4
    ECHO = 0x8
    DUMP_INTERRUPTED = 0x10
    # of get requests
    ROOT = 0x100
    MATCH = 0x200
    DUMP = 0x300
    # of new requests
    REPLACE = 0x100
    EXCLUSIVE = 0x200
    CREATE = 0x400
    APPEND = 0x800
    # of acknowledgements
    CAPPED = 0x100
    ACK_ATTRIBUTES = 0x200


class Control(enum.IntEnum):
    """NLMSG_*: message types below any family's own."""

    NOOP = 1
    ERROR = 2
    DONE = 3
    OVERRUN = 4


class NetlinkError(Exception):
    """Anything that went wrong between us and the kernel."""


class RefusedError(NetlinkError):
    """The kernel answered a request with an error number.

    errno: positive error number; reason: the kernel's own sentence, "" if it gave none.
    """

    def __init__(self, doing: str, answer: Answer) -> None:
        self.errno = answer.errno
        self.reason = answer.reason
        super().__init__(f"{doing}: {answer}")


class OverrunError(NetlinkError):
    """Answers are lost because the receive queue was full; what they said is unknown.

    Requests that can be repeated are repeated in smaller batches, notifications need a new read
    of the whole state.
    """


class MalformedError(NetlinkError):
    """Bytes that are not netlink, or an attribute of an impossible length."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message. `payload` is what follows the header, without the padding."""

    type: int
    flags: int
    sequence: int
    port_id: int
    payload: bytes


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What NLMSG_ERROR or NLMSG_DONE says: `errno` 0 is an acknowledgement.

    reason: the kernel's sentence (NLMSGERR_ATTR_MSG), "" if none; offset: byte in our message
    that it points at, -1 if none.
    """

    errno: int
    reason: str = ""
    offset: int = -1

    def __str__(self) -> str:
        text = os.strerror(self.errno) if self.errno else "acknowledged"
        return f"{text} (errno {self.errno})" + (f": {self.reason}" if self.reason else "")


# -- messages ----------------------------------------------------------------------------------


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One whole message, padded, ready to be joined with others. The kernel fills in the port id."""
    length = HEADER_LENGTH + len(payload)
    return _HEADER.pack(length, kind, flags, sequence, 0) + payload + _PADDING[length & 3]


def batch(kind: int, sequences: Sequence[int], payloads: Sequence[bytes]) -> bytes:
    """Requests of one kind as one datagram, of which only the last asks for an acknowledgement.

    Payloads must be padded, as those of generic netlink are.
    """
    flags = [int(Flag.REQUEST)] * len(payloads)
    flags[-1] |= Flag.ACK
    lengths = map(HEADER_LENGTH.__add__, map(len, payloads))
    # No loop of Python's over messages: there are a hundred thousand of them at a start.
    parts = [b""] * (2 * len(payloads))
    parts[::2] = map(_HEADER.pack, lengths, repeat(kind), flags, sequences, repeat(0))
    parts[1::2] = payloads
    return b"".join(parts)


def generic_header(command: int, version: int = 1) -> bytes:
    """The fixed header of generic netlink (`struct genlmsghdr`)."""
    return _GENERIC.pack(command, version, 0)


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of one datagram, in order.

    Raises:
        MalformedError: a length that does not fit.
    """
    offset, end = 0, len(datagram)
    while end - offset >= HEADER_LENGTH:
        length, kind, flags, sequence, port_id = _HEADER.unpack_from(datagram, offset)
        if length < HEADER_LENGTH or offset + length > end:
            raise MalformedError(f"netlink message of {length} bytes at byte {offset} of a datagram of {end}")
        yield Message(kind, flags, sequence, port_id, datagram[offset + HEADER_LENGTH : offset + length])
        offset += (length + 3) & ~3


def answer(reply: Message) -> Answer | None:
    """What an NLMSG_ERROR or NLMSG_DONE says, None for any other message.

    Raises:
        MalformedError: the message is too short for its type.
    """
    if reply.type == Control.DONE:
        # Dumps that failed on the way carry a negative error number, old kernels nothing at all.
        failed = len(reply.payload) >= _I32.size and _I32.unpack_from(reply.payload)[0] < 0
        return Answer(-_I32.unpack_from(reply.payload)[0]) if failed else Answer(0)
    if reply.type != Control.ERROR:
        return None
    if len(reply.payload) < _ERROR_HEAD:
        raise MalformedError(f"NLMSG_ERROR of {len(reply.payload)} bytes, expected at least {_ERROR_HEAD}")
    errno = -_I32.unpack_from(reply.payload)[0]
    if not reply.flags & Flag.ACK_ATTRIBUTES:
        return Answer(errno)
    start = _ERROR_HEAD
    if not reply.flags & Flag.CAPPED:
        start = 4 + ((_HEADER.unpack_from(reply.payload, 4)[0] + 3) & ~3)
    extended = attributes(reply.payload, start)
    reason = extended.get(1, b"").rstrip(b"\0").decode("utf-8", "replace")
    offset = number(extended[2]) if 2 in extended else -1
    return Answer(errno, reason, offset)


# -- attributes --------------------------------------------------------------------------------


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute with its header and padding."""
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + _PADDING[length & 3]


def nested(kind: int, *values: bytes) -> bytes:
    """An attribute whose value is a row of attributes; carries NLA_F_NESTED."""
    value = b"".join(values)
    return _ATTRIBUTE.pack(4 + len(value), kind | NESTED) + value


def u8(kind: int, value: int) -> bytes:
    """An unsigned 8 bit attribute."""
    return _ATTRIBUTE_U8.pack(5, kind, value)


def u16(kind: int, value: int) -> bytes:
    """An unsigned 16 bit attribute in host order."""
    return _ATTRIBUTE_U16.pack(6, kind, value)


def u32(kind: int, value: int) -> bytes:
    """An unsigned 32 bit attribute in host order."""
    return _ATTRIBUTE_U32.pack(8, kind, value)


def u64(kind: int, value: int) -> bytes:
    """An unsigned 64 bit attribute in host order."""
    return _ATTRIBUTE_U64.pack(12, kind, value)


def be16(kind: int, value: int) -> bytes:
    """An unsigned 16 bit attribute in network order."""
    return _ATTRIBUTE.pack(6, kind) + _ATTRIBUTE_BE16.pack(value)


def be32(kind: int, value: int) -> bytes:
    """An unsigned 32 bit attribute in network order."""
    return _ATTRIBUTE.pack(8, kind) + _ATTRIBUTE_BE32.pack(value)


def be64(kind: int, value: int) -> bytes:
    """An unsigned 64 bit attribute in network order."""
    return _ATTRIBUTE.pack(12, kind) + _ATTRIBUTE_BE64.pack(value)


def string(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def walk(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type and value of every attribute from `offset` on, in order, flags of the type removed.

    Raises:
        MalformedError: a length that does not fit.
    """
    end = len(data)
    while end - offset >= 4:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise MalformedError(f"netlink attribute {kind} of {length} bytes at byte {offset} of {end}")
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> Attributes:
    """The attributes from `offset` on, by type.

    Raises:
        MalformedError: a length that does not fit.
    """
    return dict(walk(data, offset))


def number(value: bytes) -> int:
    """An unsigned number in host order, of whatever length the attribute has."""
    return int.from_bytes(value, sys.byteorder)


def big_endian(value: bytes) -> int:
    """An unsigned number in network order, of whatever length the attribute has."""
    return int.from_bytes(value, "big")


def text(value: bytes) -> str:
    """A string up to its NUL."""
    return value.partition(b"\0")[0].decode("utf-8", "replace")
