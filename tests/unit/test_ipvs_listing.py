"""The text of /proc/net/ip_vs: what a kernel printed, cut anywhere and damaged anyhow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.address import Address, parse
from edgeproxy.kernel.ipvs_listing import Listed, Listing
from edgeproxy.model import Frontend, Protocol

HEADER = b"""\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
"""

# Linux 6.1, made with `ipvsadm -R`; the blanks at the ends of lines stand as \x20 here.
RECORDED = (
    HEADER
    + b"""\
TCP  0A60000E:0050 wlc \x20
  -> 0A010103:0050      Route   1      0          0        \x20
  -> 0A010102:0050      Masq    1      0          0        \x20
TCP  0A60000F:0050 wlc \x20
  -> 0A010102:0050      Tunnel  1      0          0        \x20
TCP  [fd00:0096:0000:0000:0000:0000:0000:0010]:01BB mh persistent 15000 40000000
  -> [fd00:0001:0000:0000:0000:0000:0000:0003]:20FB      Masq    1      0          0        \x20
  -> [fd00:0001:0000:0000:0000:0000:0000:0002]:20FB      Masq    5      0          0        \x20
UDP  0A60000B:0035 rr  persistent 2700000 FFFFFF00
  -> 0A010102:14E9      Masq    1      0          0        \x20
UDP  0A60000C:13C4 rr ops  persistent 75000 FFFFFFFF
SCTP  0A60000D:1E61 lc \x20
  -> 0A010102:1E61      Masq    1      0          0        \x20
TCP  0A60000A:1F90 wrr \x20
  -> 0A010104:0050      Masq    2147483647 0          0        \x20
  -> 0A010103:1F90      Masq    0      0          0        \x20
  -> 0A010102:0050      Masq    3      0          0        \x20
UDP  [fd00:0096:0000:0000:0000:0000:0000:0012]:0035 rr\x20
UDP  [fd00:0096:0000:0000:0000:0000:0000:0011]:0035 rr\x20
  -> 0A010102:0035      Tunnel  1      0          0        \x20
FWM  00000007 sh\x20
  -> 0A010109:0000      Route   1      0          0        \x20
FWM  00000008 wlc persistent 90000 80000000
  -> [fd00:0001:0000:0000:0000:0000:0000:0002]:0000      Masq    1      0          0        \x20
"""
)


def frontend(address: str, protocol: Protocol, port: int) -> Frontend:
    return Frontend(parse(address), protocol, port)


def real(address: str, port: int) -> tuple[Address, int]:
    return parse(address), port


TOLD: list[Listed] = [
    (
        frontend("fd00:96::10", Protocol.TCP, 443),
        {real("fd00:1::3", 8443): 1, real("fd00:1::2", 8443): 5},
    ),
    (frontend("10.96.0.11", Protocol.UDP, 53), {real("10.1.1.2", 5353): 1}),
    (frontend("10.96.0.12", Protocol.UDP, 5060), {}),
    (frontend("10.96.0.13", Protocol.SCTP, 7777), {real("10.1.1.2", 7777): 1}),
    (
        frontend("10.96.0.10", Protocol.TCP, 8080),
        {real("10.1.1.4", 80): 2147483647, real("10.1.1.3", 8080): 0, real("10.1.1.2", 80): 3},
    ),
    (frontend("fd00:96::12", Protocol.UDP, 53), {}),
]


def told(*pieces: bytes) -> list[Listed]:
    listing = Listing()
    return [found for piece in pieces for found in listing.feed(piece)] + listing.end()


def test_what_a_kernel_printed() -> None:
    assert told(RECORDED) == TOLD


def test_nothing_is_nothing() -> None:
    assert told() == told(b"") == told(HEADER) == []


def test_connections_are_passed_over() -> None:
    text = b"TCP  0A600001:0050 wrr  \n  -> 0A010102:0050      Masq    1      1234567890 42        \n"
    assert told(text) == [(frontend("10.96.0.1", Protocol.TCP, 80), {real("10.1.1.2", 80): 1})]


def test_cut_anywhere() -> None:
    for at in range(len(RECORDED)):
        assert told(RECORDED[:at], RECORDED[at:]) == TOLD, RECORDED[:at]
    assert told(*(RECORDED[at : at + 1] for at in range(len(RECORDED)))) == TOLD


def test_a_virtual_server_is_told_once_the_next_one_begins() -> None:
    first, second = (
        b"TCP  0A600001:0050 wrr  \n" + b"  -> 0A010102:0050      Masq    1      0          0         \n" * 2,
        b"TCP  0A600002:0050 wrr  \n",
    )
    listing = Listing()
    assert listing.feed(HEADER + first) == []
    assert [name for name, _ in listing.feed(second[:1])] == [frontend("10.96.0.1", Protocol.TCP, 80)]
    assert listing.feed(second[1:]) == []
    assert listing.end() == [(frontend("10.96.0.2", Protocol.TCP, 80), {})]
    assert listing.end() == []


BEFORE = b"TCP  0A600001:0050 wrr  \n  -> 0A010102:0050      Masq    1      0          0         \n"
AFTER = b"UDP  0A600003:0050 wrr  \n  -> 0A010103:0050      Masq    1      0          0         \n"
SERVER_4 = b"TCP  0A600002:0050 wrr  \n"
SERVER_6 = b"TCP  [fd00:0096:0000:0000:0000:0000:0000:0010]:01BB mh \n"
GOOD = b"  -> 0A010102:0050      Masq    1      0          0         \n"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"ICMP  0A600002:0050 wrr  \n" + GOOD, id="protocol"),
        pytest.param(b"IP_50  0A600002:0050 wrr  \n" + GOOD, id="numbered protocol"),
        pytest.param(b"TCP 0A600002:0050 wrr  \n" + GOOD, id="one blank"),
        pytest.param(b"TCP  0a600002:0050 wrr  \n" + GOOD, id="case"),
        pytest.param(b"TCP  A600002:0050 wrr  \n" + GOOD, id="short address"),
        pytest.param(b"TCP  00A600002:0050 wrr  \n" + GOOD, id="long address"),
        pytest.param(b"TCP  0A600002:50 wrr  \n" + GOOD, id="short port"),
        pytest.param(b"TCP  0A600002\n" + GOOD, id="no port"),
        pytest.param(b"TCP  [fd00::10]:01BB wrr \n", id="compressed address"),
        pytest.param(b"\n", id="empty line"),
        pytest.param(b"nonsense\n" + GOOD, id="nonsense"),
        pytest.param(SERVER_4 + GOOD + b"  -> 0A010102:0050      FullNat 1      0          0         \n", id="method"),
        pytest.param(SERVER_4 + b"  -> 0A010102:0050      Local   1      0          0         \n" + GOOD, id="local"),
        pytest.param(SERVER_4 + b"  -> 0A010102:0050      Masq    -1     0          0         \n", id="sign"),
        pytest.param(SERVER_4 + b"  -> 0A010102:0050      Masq    1      -1         0         \n", id="less than none"),
        pytest.param(SERVER_4 + b"  -> 0A010102:0050      Masq    1_0    0          0         \n", id="underscore"),
        pytest.param(SERVER_4 + b"  -> 0A010102:0050      Masq    12345678901 0    0         \n", id="long number"),
        pytest.param(SERVER_4 + b"  -> 0A010102:0050      Masq    1      0\n" + GOOD, id="a column less"),
        pytest.param(SERVER_4 + b"  -> 0A010102:0050      Masq    1      0          0          0\n", id="a column more"),
        pytest.param(SERVER_4 + GOOD + b"  -> 0A010102:0050\n", id="half a line"),
        pytest.param(SERVER_4 + GOOD + b"  something new\n", id="another line below"),
        pytest.param(SERVER_4 + GOOD[:-1], id="two lines in one"),
        pytest.param(SERVER_6 + GOOD, id="IPv4 below IPv6"),
        pytest.param(
            SERVER_4 + b"  -> [fd00:0001:0000:0000:0000:0000:0000:0003]:20FB      Masq    1      0          0         \n",
            id="IPv6 below IPv4",
        ),
        pytest.param(SERVER_6 + b"  -> [fd00:1:0:0:0:0:0:3]:20FB      Masq    1      0          0         \n", id="groups"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_left_out(text: bytes) -> None:
    expected = told(BEFORE + AFTER)
    assert len(expected) == 2
    if text == SERVER_4 + GOOD[:-1]:
        # The line that follows is part of the damage.
        expected = expected[:1]
    assert told(HEADER + BEFORE + text + AFTER) == expected


ADDRESSES = st.one_of(
    st.binary(min_size=4, max_size=4).map(Address), st.binary(min_size=16, max_size=16).map(Address)
)
PORTS = st.integers(0, 65535)
NUMBERS = st.integers(0, 2**31 - 1)


@st.composite
def virtual_servers(draw: st.DrawFn) -> Listed:
    address = draw(ADDRESSES)
    backends = st.binary(min_size=len(address), max_size=len(address)).map(Address)
    name = Frontend(address, draw(st.sampled_from(Protocol)), draw(PORTS))
    return name, draw(st.dictionaries(st.tuples(backends, PORTS), NUMBERS, max_size=4))


def socket(address: Address, port: int) -> str:
    if len(address) == 4:
        return f"{address.hex().upper()}:{port:04X}"
    return f"[{address.hex(':', 2)}]:{port:04X}"


def printed(server: Listed, connections: int = 0) -> bytes:
    """As ip_vs_info_seq_show does."""
    name, weights = server
    lines = [f"{name.protocol.name}  {socket(name.address, name.port)} wrr "]
    lines += [
        f"  -> {socket(*each)}      {'Masq':7} {weight:<6} {connections:<10} {connections // 2:<10}"
        for each, weight in weights.items()
    ]
    return "".join(f"{line}\n" for line in lines).encode()


@given(servers=st.lists(virtual_servers(), max_size=6), connections=NUMBERS, size=st.integers(1, 400))
def test_what_is_printed_is_told(servers: list[Listed], connections: int, size: int) -> None:
    text = HEADER + b"".join(printed(server, connections) for server in servers)
    assert told(*(text[at : at + size] for at in range(0, len(text), size))) == servers


@given(at=st.integers(0, len(RECORDED)), length=st.integers(0, 40), put=st.binary(max_size=8))
def test_damage_never_raises(at: int, length: int, put: bytes) -> None:
    told(RECORDED[:at] + put + RECORDED[at + length :])
