"""Flows without a kernel: messages both ways, and selections."""

from __future__ import annotations

import socket
import struct

import pytest

from edgeproxy.address import Address, parse
from edgeproxy.kernel.conntrack import Direction, Flow, Selection, decode, deletion, request
from edgeproxy.kernel.netlink import attribute, attributes, be16, be32, nested, u8


def _tuple(kind: int, protocol: int, way: Direction) -> bytes:
    first = 1 if len(way.source) == 4 else 3
    return nested(
        kind,
        nested(1, attribute(first, way.source), attribute(first + 1, way.destination)),
        nested(2, u8(1, protocol), be16(2, way.source_port), be16(3, way.destination_port)),
    )


def _payload(flow: Flow) -> bytes:
    """The flow as the kernel dumps it."""
    af = socket.AF_INET if len(flow.original.source) == 4 else socket.AF_INET6
    info = nested(4, nested(1, u8(1, flow.tcp_state))) if flow.tcp_state >= 0 else b""
    zone = be16(18, flow.zone) if flow.zone else b""
    return (
        struct.pack(">BBH", af, 0, 0)
        + _tuple(1, flow.protocol, flow.original)
        + _tuple(2, flow.protocol, flow.reply)
        + be32(3, flow.status)
        + info
        + be32(7, flow.timeout)
        + be32(8, flow.mark)
        + be32(12, flow.id)
        + zone
    )


CLIENT, VIP, BACKEND = parse("10.0.0.2"), parse("10.96.0.1"), parse("10.1.1.2")
WEB = Flow(
    6, Direction(CLIENT, 40000, VIP, 80), Direction(BACKEND, 8080, CLIENT, 40000), 0x1AE, 3, 0x4000, 60, 7
)
SIX = Flow(
    17,
    Direction(parse("fd00::2"), 40000, parse("fd96::1"), 53),
    Direction(parse("fd01::2"), 5353, parse("fd00::2"), 40000),
    0x28, -1, 0, 30, 8, zone=5,
)  # fmt: skip


@pytest.mark.parametrize("flow", [WEB, SIX])
def test_decoding(flow: Flow) -> None:
    assert decode(_payload(flow)) == flow


def test_protocols_without_ports_are_left_out() -> None:
    icmp = nested(
        1,
        nested(1, attribute(1, CLIENT), attribute(2, VIP)),
        nested(2, u8(1, 1), be16(4, 9), u8(5, 8), u8(6, 0)),
    )
    assert decode(struct.pack(">BBH", socket.AF_INET, 0, 0) + icmp) is None
    assert decode(struct.pack(">BBH", socket.AF_INET, 0, 0)) is None


@pytest.mark.parametrize("flow", [WEB, SIX])
def test_a_deletion_names_tuple_id_and_zone(flow: Flow) -> None:
    payload = deletion(flow)
    sent = attributes(payload, 4)
    assert payload[0] == (socket.AF_INET if flow is WEB else socket.AF_INET6)
    assert nested(1, sent[1]) == _tuple(1, flow.protocol, flow.original)
    assert sent[12] == struct.pack(">I", flow.id)
    assert sent.get(18) == (struct.pack(">H", 5) if flow is SIX else None)
    assert 2 not in sent


def test_a_request_filters_in_the_kernel_where_that_works() -> None:
    whole = attributes(request(Selection(socket.AF_INET, 6, 0x4000, 0x4000, BACKEND, 8080)), 4)
    assert (whole[8], whole[21]) == (struct.pack(">I", 0x4000), struct.pack(">I", 0x4000))
    assert attributes(whole[25]) == {2: struct.pack("=I", 0x1 | 0x8 | 0x10)}
    assert bytes(BACKEND) in whole[2]
    assert not attributes(request(Selection(socket.AF_INET)), 4)
    # The kernel's comparison of IPv6 addresses is the wrong way round.
    six = attributes(request(Selection(socket.AF_INET6, 17, reply_source=SIX.reply.source)), 4)
    assert bytes(SIX.reply.source) not in six[2]
    assert attributes(six[25]) == {2: struct.pack("=I", 0x8)}
    with pytest.raises(ValueError, match="needs a protocol"):
        request(Selection(socket.AF_INET, reply_source_port=80))


@pytest.mark.parametrize(
    ("selection", "holds"),
    [
        (Selection(socket.AF_INET), True),
        (Selection(socket.AF_INET, 6), True),
        (Selection(socket.AF_INET, 17), False),
        (Selection(socket.AF_INET, mark=0x4000, mask=0x4000), True),
        (Selection(socket.AF_INET, mark=0, mask=0x4000), False),
        (Selection(socket.AF_INET, mark=0, mask=0x8000), True),
        (Selection(socket.AF_INET, reply_source=BACKEND), True),
        (Selection(socket.AF_INET, reply_source=VIP), False),
        (Selection(socket.AF_INET, 6, reply_source=BACKEND, reply_source_port=8080), True),
        (Selection(socket.AF_INET, 6, reply_source=BACKEND, reply_source_port=80), False),
    ],
)
def test_selections(selection: Selection, holds: bool) -> None:
    assert (WEB in selection) is holds


def test_flows_print() -> None:
    assert str(WEB.original) == "10.0.0.2:40000 -> 10.96.0.1:80"
    assert isinstance(WEB.original.source, bytes)
    assert "[fd01::2]:5353" in str(SIX)
    assert Address(SIX.reply.source) == parse("fd01::2")
