"""Netlink framing."""

from __future__ import annotations

import errno
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.kernel import netlink
from edgeproxy.kernel.netlink import Answer, Control, Flag, MalformedError, Message

payloads = st.binary(max_size=40)


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 2**32 - 1), payloads)))
def test_messages_come_back_from_one_datagram(given_messages: list[tuple[int, int, int, bytes]]) -> None:
    datagram = b"".join(netlink.message(*given) for given in given_messages)
    assert len(datagram) % 4 == 0
    assert list(netlink.messages(datagram)) == [
        Message(kind, flags, sequence, 0, payload) for kind, flags, sequence, payload in given_messages
    ]


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), payloads)))
def test_attributes_come_back_in_order(pairs: list[tuple[int, bytes]]) -> None:
    assert list(netlink.walk(b"".join(netlink.attribute(kind, value) for kind, value in pairs))) == pairs


def test_the_layout_of_attributes() -> None:
    if sys.byteorder != "little":
        pytest.skip("the bytes below are little endian")
    assert netlink.u8(1, 2) == bytes.fromhex("0500010002000000")
    assert netlink.u16(1, 2) == bytes.fromhex("0600010002000000")
    assert netlink.u32(1, 2) == bytes.fromhex("0800010002000000")
    assert netlink.u64(1, 2) == bytes.fromhex("0c0001000200000000000000")
    assert netlink.be16(1, 2) == bytes.fromhex("0600010000020000")
    assert netlink.be32(1, 2) == bytes.fromhex("0800010000000002")
    assert netlink.be64(1, 2) == bytes.fromhex("0c0001000000000000000002")
    assert netlink.string(6, "wrr") == bytes.fromhex("0800060077727200")
    assert netlink.nested(1, netlink.u8(5, 7)) == bytes.fromhex("0c0001800500050007000000")
    assert netlink.message(3, 5, 9, b"x") == bytes.fromhex("11000000 0300 0500 09000000 00000000 78000000")


def test_numbers_of_any_length_and_text() -> None:
    assert netlink.number(struct.pack("=I", 70000)) == 70000
    assert netlink.number(b"") == 0
    assert netlink.big_endian(b"\x1f\x40") == 8000
    assert netlink.text(b"wrr\0junk") == "wrr"


def test_flags_are_removed_from_attribute_types() -> None:
    inner = netlink.u32(4, 5)
    (found,) = netlink.walk(netlink.nested(1, inner))
    assert found == (1, inner)


@pytest.mark.parametrize("datagram", ["0f000000000000000000000000000000", "20000000000000000000000000000000"])
def test_a_message_that_does_not_fit_is_malformed(datagram: str) -> None:
    with pytest.raises(MalformedError, match="bytes at byte 0 of a datagram of 16"):
        list(netlink.messages(bytes.fromhex(datagram)))


@pytest.mark.parametrize("attribute", [b"\x03\x00\x01\x00", b"\x08\x00\x01\x00"])
def test_an_attribute_that_does_not_fit_is_malformed(attribute: bytes) -> None:
    with pytest.raises(MalformedError, match="attribute 1"):
        netlink.attributes(attribute)


def _error(flags: int, payload: bytes) -> Message:
    return Message(Control.ERROR, flags, 7, 0, payload)


def test_an_acknowledgement_and_errors() -> None:
    head = struct.pack("=IHHII", 20, 32, 5, 7, 0)
    assert netlink.answer(_error(0, struct.pack("=i", 0) + head)) == Answer(0)
    assert netlink.answer(_error(0, struct.pack("=i", -3) + head + b"abcd")) == Answer(errno.ESRCH)
    extended = netlink.string(1, "no such thing") + netlink.u32(2, 24)
    refused = struct.pack("=i", -22)
    capped = Flag.CAPPED | Flag.ACK_ATTRIBUTES
    assert netlink.answer(_error(capped, refused + head + extended)) == Answer(22, "no such thing", 24)
    # Without the cap the whole request is echoed before the attributes.
    echoed = refused + head + b"abcd" + extended
    assert netlink.answer(_error(Flag.ACK_ATTRIBUTES, echoed)) == Answer(22, "no such thing", 24)
    assert str(Answer(22, "why")) == "Invalid argument (errno 22): why"


def test_the_end_of_a_dump() -> None:
    assert netlink.answer(Message(Control.DONE, 0, 7, 0, struct.pack("=i", 0))) == Answer(0)
    assert netlink.answer(Message(Control.DONE, 0, 7, 0, b"")) == Answer(0)
    assert netlink.answer(Message(Control.DONE, 0, 7, 0, struct.pack("=i", -16))) == Answer(errno.EBUSY)
    assert netlink.answer(Message(32, 0, 7, 0, b"data")) is None


def test_a_short_error_is_malformed() -> None:
    with pytest.raises(MalformedError, match="expected at least 20"):
        netlink.answer(_error(0, b"\0\0\0\0"))
