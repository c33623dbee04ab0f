"""Flows of real packets through a DNAT, listed and deleted; conntrack(8) counts along where it is installed."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import msgspec
import pytest

from edgeproxy.address import parse
from edgeproxy.kernel.conntrack import Conntrack, Flow, Selection, Status, TcpState
from tests.native.conftest import sh

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
MARK = 0x4000
VIP4, BACKEND4 = "10.96.0.1", "10.0.0.1"
VIP6, BACKEND6 = "fd96::1", "fd00::1"
RULES = f"""
table inet test {{
  chain output {{
    type nat hook output priority -100
    ip daddr {VIP4} udp dport 53 ct mark set {MARK} dnat ip to {BACKEND4}:5353
    ip daddr {VIP4} tcp dport 80 dnat ip to {BACKEND4}:8080
    ip daddr {VIP4} tcp dport 81 dnat ip to {BACKEND4}:8181
    ip6 daddr {VIP6} udp dport 53 dnat ip6 to [{BACKEND6}]:5353
  }}
  chain filter {{
    type filter hook input priority 0
    tcp dport 8181 drop
  }}
}}
"""


@pytest.fixture
def conntrack(netns: None) -> Iterator[Conntrack]:
    for address in (BACKEND4, "10.0.0.2"):
        sh("ip", "address", "add", f"{address}/32", "dev", "lo")
    sh("ip", "address", "add", f"{BACKEND6}/128", "dev", "lo", "nodad")
    sh("ip", "route", "add", "local", "10.96.0.0/16", "dev", "lo", "src", "10.0.0.2")
    sh("ip", "-6", "route", "add", "local", "fd96::/64", "dev", "lo")
    sh("nft", "-f", "-", script=RULES)
    with Conntrack() as opened:
        yield opened


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def _datagram(sockets: contextlib.ExitStack, to: str, port: int) -> int:
    """Send one datagram from a new port; the port."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    sender = sockets.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    sender.connect((to, port))
    sender.send(b"x")
    return int(sender.getsockname()[1])


def _listener(sockets: contextlib.ExitStack, kind: int, address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = sockets.enter_context(socket.socket(family, kind))
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen()


def _traffic(sockets: contextlib.ExitStack) -> None:
    _listener(sockets, socket.SOCK_DGRAM, BACKEND4, 5353)
    _listener(sockets, socket.SOCK_DGRAM, BACKEND6, 5353)
    _listener(sockets, socket.SOCK_STREAM, BACKEND4, 8080)
    for _ in range(3):
        _datagram(sockets, VIP4, 53)
    _datagram(sockets, VIP6, 53)
    _datagram(sockets, "10.0.0.2", 9)
    sockets.enter_context(socket.create_connection((VIP4, 80)))
    stuck = sockets.enter_context(socket.socket())
    stuck.setblocking(False)
    stuck.connect_ex((VIP4, 81))


def _some(conntrack: Conntrack, selection: Selection) -> list[Flow]:
    return sorted(conntrack.flows(selection), key=lambda flow: flow.original)


def test_a_flow_is_read_whole(conntrack: Conntrack, sockets: contextlib.ExitStack) -> None:
    _listener(sockets, socket.SOCK_DGRAM, BACKEND4, 5353)
    port = _datagram(sockets, VIP4, 53)
    (flow,) = _some(conntrack, Selection(socket.AF_INET, UDP))
    assert (flow.original.source, flow.original.source_port) == (parse("10.0.0.2"), port)
    assert (flow.original.destination, flow.original.destination_port) == (parse(VIP4), 53)
    assert (flow.reply.source, flow.reply.source_port) == (parse(BACKEND4), 5353)
    assert (flow.reply.destination, flow.reply.destination_port) == (parse("10.0.0.2"), port)
    assert (flow.protocol, flow.mark, flow.tcp_state) == (UDP, MARK, -1)
    assert flow.status & Status.DESTINATION_NAT
    assert not flow.status & Status.SEEN_REPLY
    assert 0 < flow.timeout <= 600


def test_selections(conntrack: Conntrack, sockets: contextlib.ExitStack) -> None:
    _traffic(sockets)
    v4, v6 = socket.AF_INET, socket.AF_INET6
    backend = parse(BACKEND4)
    for selection, count in (
        (Selection(v4), 6),
        (Selection(v4, UDP), 4),
        (Selection(v4, TCP), 2),
        (Selection(v4, mark=MARK, mask=MARK), 3),
        (Selection(v4, mark=0, mask=MARK), 3),
        (Selection(v4, reply_source=backend), 5),
        (Selection(v4, UDP, reply_source=backend, reply_source_port=5353), 3),
        (Selection(v4, TCP, reply_source=backend, reply_source_port=8080), 1),
        (Selection(v4, UDP, reply_source=backend, reply_source_port=9), 0),
        (Selection(v6, UDP, reply_source=parse(BACKEND6), reply_source_port=5353), 1),
        (Selection(v6, reply_source=parse(BACKEND6)), 1),
        (Selection(v6, UDP, reply_source=parse("fd00::2"), reply_source_port=5353), 0),
        (Selection(v6, TCP), 0),
    ):
        assert len(_some(conntrack, selection)) == count, selection


def test_tcp_states(conntrack: Conntrack, sockets: contextlib.ExitStack) -> None:
    _traffic(sockets)
    states = {
        flow.original.destination_port: flow.tcp_state
        for flow in conntrack.flows(Selection(socket.AF_INET, TCP))
    }
    assert states == {80: TcpState.ESTABLISHED, 81: TcpState.SYN_SENT}


def test_deleting_takes_those_and_no_others(conntrack: Conntrack, sockets: contextlib.ExitStack) -> None:
    _traffic(sockets)
    for family in (socket.AF_INET, socket.AF_INET6):
        everything = _some(conntrack, Selection(family))
        gone = [flow for flow in everything if flow.original.destination_port == 53]
        assert conntrack.delete(gone) == len(gone) > 0
        assert conntrack.delete(gone) == 0
        left = {flow.original for flow in conntrack.flows(Selection(family))}
        assert left == {flow.original for flow in everything if flow not in gone}


def test_a_flow_of_another_id_stays(conntrack: Conntrack, sockets: contextlib.ExitStack) -> None:
    _datagram(sockets, VIP4, 53)
    (flow,) = conntrack.flows(Selection(socket.AF_INET, UDP))
    assert conntrack.delete([msgspec.structs.replace(flow, id=flow.id ^ 1)]) == 0
    assert conntrack.delete([flow]) == 1


def test_a_list_left_half_read(conntrack: Conntrack, sockets: contextlib.ExitStack) -> None:
    for port in range(1, 2000):
        _datagram_from_one(sockets, port)
    half = conntrack.flows(Selection(socket.AF_INET))
    first = next(half)
    half.close()
    assert conntrack.delete([first]) == 1
    assert len(_some(conntrack, Selection(socket.AF_INET))) == 1998


def _datagram_from_one(sockets: contextlib.ExitStack, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 4001))
        sender.sendto(b"x", ("127.0.0.1", port))


def test_many(conntrack: Conntrack, capsys: pytest.CaptureFixture[str]) -> None:
    count = 20_000
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 4002))
        for port in range(1, count + 1):
            sender.sendto(b"x", ("127.0.0.1", port))
    begin = time.perf_counter()
    flows = list(conntrack.flows(Selection(socket.AF_INET)))
    listed = time.perf_counter()
    one = list(
        conntrack.flows(Selection(socket.AF_INET, UDP, reply_source=parse("127.0.0.1"), reply_source_port=77))
    )
    filtered = time.perf_counter()
    deleted = conntrack.delete(flows)
    end = time.perf_counter()
    assert (len(flows), len(one), deleted) == (count, 1, count)
    with capsys.disabled():
        print(
            f"\n{count} flows, milliseconds: list {(listed - begin) * 1e3:.0f}, "
            f"list one {(filtered - listed) * 1e3:.1f}, delete {(end - filtered) * 1e3:.0f}"
        )
