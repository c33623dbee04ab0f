"""The element codec without a kernel: recorded bytes, round trips, and what it refuses."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.address import Address, parse
from edgeproxy.kernel.netlink import MalformedError, be32, be64, nested
from edgeproxy.kernel.nft_codec import (
    Command,
    Decoder,
    begin,
    changes,
    comment_text,
    end,
    generation,
    header,
    list_head,
    verdict_text,
)
from edgeproxy.kernel.nft_sets import COMMENT_LIMIT, SETS, Field, SetType, comment, describe
from edgeproxy.model import Element, Protocol, SetName

VIP = parse("10.96.0.10")
WEB = Element(SetName.FRONTENDS4, (VIP, Protocol.TCP, 8000), "cluster_ip4", comment="web")

# What nft 1.0.6 sends for: add element inet edgeproxy frontends4 { 10.96.0.10 . tcp . 8000 comment "web" : goto
# cluster_ip4 }, the list of elements alone (in its own order of attributes within an element, ours is the same).
WEB_ELEMENT = bytes.fromhex(
    "44000180"  # NFTA_LIST_ELEM
    "14000180" "10000100" "0a60000a" "06000000" "1f400000"  # KEY { VALUE 10.96.0.10 . 6 . 8000 }
    "20000280" "1c000280" "08000100" "fffffffc" "10000200" + b"cluster_ip4\0".hex() +  # DATA { VERDICT { goto } }
    "0a000600" "0004" + b"web\0".hex() + "0000"  # USERDATA { comment }
)  # fmt: skip


def _sent(element: Element, timeout: float = 0) -> bytes:
    (change,) = changes(Command.NEW_ELEMENTS, [element], {element: timeout} if timeout else {})
    return change.payload


def test_the_bytes_of_an_element() -> None:
    head = (
        bytes.fromhex("010000000e000100") + b"edgeproxy\0\0\0" + bytes.fromhex("0f000200") + b"frontends4\0\0"
    )
    assert list_head(SetName.FRONTENDS4) == head
    assert _sent(WEB) == head + struct.pack("=HH", 4 + len(WEB_ELEMENT), 3 | 0x8000) + WEB_ELEMENT


def test_batch_messages() -> None:
    assert begin() == (16, bytes.fromhex("0000000a"))
    assert begin(7) == (16, bytes.fromhex("0000000a0800010000000007"))
    assert end() == (17, bytes.fromhex("0000000a"))


def test_a_deletion_names_the_key_only() -> None:
    (change,) = changes(Command.DELETE_ELEMENTS, [WEB], {})
    assert b"cluster_ip4" not in change.payload
    assert b"web" not in change.payload
    assert change.payload.endswith(bytes.fromhex("0a60000a060000001f400000"))


def _value(field: Field) -> st.SearchStrategy[Address | Protocol | int]:
    if field is Field.PROTOCOL:
        return st.sampled_from(Protocol)
    if field is Field.PORT:
        return st.integers(0, 65535)
    size = 4 if field is Field.IPV4 else 16
    return st.binary(min_size=size, max_size=size).map(Address)


@st.composite
def elements(draw: st.DrawFn) -> Element:
    name = draw(st.sampled_from(SetName))
    kind: SetType = SETS[name]
    key = tuple(draw(_value(field)) for field in kind.key)
    until = tuple(draw(_value(field)) for field in kind.key) if kind.ranges else ()
    verdict = draw(st.from_regex(r"[a-z_]{1,30}[46]", fullmatch=True)) if kind.data is Field.VERDICT else ""
    data = draw(_value(kind.data)) if kind.data in (Field.IPV4, Field.IPV6) else b""
    assert isinstance(data, bytes)
    words = comment(draw(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
    return Element(name, key, verdict, Address(data), words, until)


@given(st.lists(elements(), max_size=30))
def test_what_is_encoded_is_decoded(wanted: list[Element]) -> None:
    found = [
        held.element
        for change in changes(Command.NEW_ELEMENTS, wanted, {})
        for held in Decoder(change.set).read(change.payload)
    ]
    assert sorted(found, key=repr) == sorted(wanted, key=repr)


def test_long_lists_are_cut_into_messages_and_refusals_find_their_element() -> None:
    many = [Element(SetName.FRONTENDS4, (VIP, Protocol.TCP, port), "cluster_ip4") for port in range(1, 5000)]
    parts = list(changes(Command.NEW_ELEMENTS, many, {}))
    assert len(parts) > 1
    assert [element for part in parts for element in part.elements] == many
    for part in parts:
        assert len(part.payload) < 1 << 16
        for element, start in zip(part.elements, part.starts, strict=True):
            port = element.key[2]
            assert isinstance(port, int)
            # offsets count from the message's header
            assert part.payload[start - 16 :][16:20] != b""
            assert struct.unpack_from(">H", part.payload, start - 16 + 20)[0] == port
            assert part.at(start) == part.at(start + 4) == element
        assert part.at(-1) is None


def _dumped(element: Element, *more: bytes) -> bytes:
    """The element as in a dump with further attributes."""
    inner = WEB_ELEMENT[4:] if element is WEB else b""
    return list_head(element.set) + nested(3, nested(1, inner, *more))


def test_remaining_time() -> None:
    (held,) = Decoder(WEB.set).read(_dumped(WEB, be64(4, 300_000), be64(5, 12_345)))
    assert held.element == WEB
    assert held.remaining == 12.345
    (held,) = Decoder(WEB.set).read(_dumped(WEB))
    assert held.remaining is None


@pytest.mark.parametrize(("seconds", "milliseconds"), [(300, 300_000), (0.0001, 1), (86_400.5, 86_400_500)])
def test_timeouts_are_milliseconds(seconds: float, milliseconds: int) -> None:
    drain = Element(SetName.DRAINS4, (VIP, Protocol.TCP, 80, VIP, 8080))
    assert _sent(drain, seconds).endswith(be64(4, milliseconds))


def test_sources_of_one_address_have_an_end_even_if_the_kernel_sends_none() -> None:
    key = (VIP, Protocol.TCP, 80, parse("192.0.2.1"))
    (change,) = changes(Command.DELETE_ELEMENTS, [Element(SetName.SOURCES4, key, until=key)], {})
    whole = change.payload[len(list_head(SetName.SOURCES4)) + 4 + 4 :]
    only_key = whole[: len(whole) // 2]
    (held,) = Decoder(SetName.SOURCES4).read(list_head(SetName.SOURCES4) + nested(3, nested(1, only_key)))
    assert held.element.until == key


def test_a_set_of_another_type_is_noticed() -> None:
    with pytest.raises(MalformedError, match="node_ports4 holds a key of 12 bytes, not 8"):
        list(Decoder(SetName.NODE_PORTS4).read(_dumped(WEB)))


def test_an_unknown_protocol_stays_a_number() -> None:
    raw = WEB_ELEMENT.replace(bytes.fromhex("06000000"), bytes.fromhex("2f000000"))
    (held,) = Decoder(WEB.set).read(list_head(WEB.set) + nested(3, raw))
    assert held.element.key == (VIP, 47, 8000)


@pytest.mark.parametrize(
    ("code", "chain", "words"),
    [(-4, b"x\0", "x"), (-3, b"x\0", "jump x"), (0, b"", "drop"), (1, b"", "accept"), (-5, b"", "return")],
)
def test_verdicts(code: int, chain: bytes, words: str) -> None:
    inner = be32(1, code & 0xFFFFFFFF) + (struct.pack("=HH", 4 + len(chain), 2) + chain if chain else b"")
    assert verdict_text(nested(2, inner)) == words


def test_comments_beside_other_user_data() -> None:
    assert comment_text(bytes.fromhex("0104000000010004") + b"web\0") == "web"
    assert comment_text(bytes.fromhex("010400000001")) == ""
    assert comment_text(b"\0") == ""


def test_comment_is_cut_between_characters() -> None:
    assert comment("web") == "web"
    assert comment("n" * 300) == "n" * COMMENT_LIMIT
    assert comment("a" + "é" * 100) == "a" + "é" * 63


def _misfits() -> Iterator[Element]:
    six = parse("fd00::1")
    tcp = Protocol.TCP
    yield Element(SetName.FRONTENDS4, (six, tcp, 80), "x")
    yield Element(SetName.FRONTENDS4, (VIP, tcp, 70000), "x")
    yield Element(SetName.FRONTENDS4, (VIP, tcp), "x")
    yield Element(SetName.FRONTENDS4, (), "x")
    yield Element(SetName.FRONTENDS4, (VIP, tcp, 80))
    yield Element(SetName.DETOURS4, (VIP, tcp, 80))
    yield Element(SetName.DETOURS4, (VIP, tcp, 80), data=six)
    yield Element(SetName.SOURCES4, (VIP, tcp, 80, VIP))
    yield Element(SetName.HAIRPIN4, (VIP, VIP), until=(VIP, VIP))
    yield Element(SetName.ADDRESSES4, (VIP,), comment="n" * (COMMENT_LIMIT + 1))


@pytest.mark.parametrize("element", list(_misfits()), ids=describe)
def test_misfits_are_refused(element: Element) -> None:
    with pytest.raises(ValueError, match=element.set):
        list(changes(Command.NEW_ELEMENTS, [element], {}))


def test_generation() -> None:
    found = generation(header(0) + be32(1, 77) + be32(2, 1234) + bytes.fromhex("08000300") + b"nft\0")
    assert (found.number, found.program) == (77, "nft")


def test_describe() -> None:
    assert describe(WEB) == "10.96.0.10 . tcp . 8000 : goto cluster_ip4 (web)"
    source = Element(SetName.SOURCES6, (parse("fd00::1"), Protocol.UDP, 53, parse("::")),
                     until=(parse("fd00::1"), Protocol.UDP, 53, parse("::ff")))  # fmt: skip
    assert describe(source) == "fd00::1 . udp . 53 . :: to fd00::1 . udp . 53 . ::ff"
