"""Which tracked flows are forgotten: those bound to a backend that left, never established TCP."""

from __future__ import annotations

import socket

import pytest

from edgeproxy.address import parse, parse_network
from edgeproxy.books import Socket
from edgeproxy.kernel.conntrack import Direction, Flow, Selection, TcpState
from edgeproxy.model import Frontend, Protocol
from edgeproxy.plan import Stale
from edgeproxy.stale import SINGLE_LOOKS, StaleFlows, forget
from tests.fake_kernel import FakeConntrack, FakeKernel

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
ANCHORS = (parse_network("169.254.96.0/20"), parse_network("fd96::/64"))
CLIENT, HOST, VIP = parse("198.51.100.9"), parse("10.1.0.11"), parse("10.96.0.10")
FRONT = parse("169.254.96.1")
GONE: Socket = (parse("10.1.1.2"), 8080)
KEPT: Socket = (parse("10.1.2.2"), 8080)


def flow(
    protocol: Protocol, to: Frontend | tuple[bytes, int], backend: Socket, state: TcpState | int = -1
) -> Flow:
    address, port = (to.address, to.port) if isinstance(to, Frontend) else to
    return Flow(
        protocol=protocol,
        original=Direction(CLIENT, 40000, address, port),  # type: ignore[arg-type]
        reply=Direction(*backend, CLIENT, 40000),
        status=0,
        tcp_state=state,
        mark=0,
        timeout=30,
        id=1,
    )


def udp(address: bytes, port: int, backend: Socket) -> Flow:
    return flow(UDP, (address, port), backend)


class TestUdp:
    """KP-180 to KP-187."""

    dns = Frontend(VIP, UDP, 53)
    node = Frontend(FRONT, UDP, 36200)

    @pytest.mark.parametrize(
        ("found", "stale"),
        [
            (udp(VIP, 53, GONE), True),
            (udp(VIP, 53, KEPT), False),
            (udp(VIP, 54, GONE), False),
            (udp(parse("10.96.0.11"), 53, GONE), False),
            (udp(HOST, 36200, GONE), True),
            (udp(HOST, 36201, GONE), False),
            (flow(TCP, (VIP, 53), GONE, TcpState.SYN_SENT), False),
        ],
    )
    def test_through_the_frontend_to_the_backend(self, found: Flow, stale: bool) -> None:
        assert (found in StaleFlows([Stale(self.dns, GONE), Stale(self.node, GONE)], ANCHORS)) == stale

    @pytest.mark.parametrize(
        ("found", "stale"),
        [
            (udp(VIP, 53, (VIP, 53)), True),
            (udp(VIP, 53, KEPT), False),
            (udp(VIP, 54, (VIP, 54)), False),
            (flow(TCP, (VIP, 53), (VIP, 53), TcpState.SYN_SENT), False),
        ],
    )
    def test_let_through_before_there_was_a_backend(self, found: Flow, stale: bool) -> None:
        assert (found in StaleFlows([Stale(self.dns, None)], ANCHORS)) == stale


@pytest.mark.parametrize("state", list(TcpState))
def test_tcp_only_while_it_opens_and_only_through_our_dnat(state: TcpState) -> None:
    opening = state in (TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.SYN_SENT2)
    node, web = Frontend(FRONT, TCP, 36200), Frontend(VIP, TCP, 80)
    judged = StaleFlows([Stale(node, GONE), Stale(web, GONE)], ANCHORS)
    assert (flow(TCP, (HOST, 36200), GONE, state) in judged) == opening
    assert flow(TCP, web, GONE, state) not in judged


def test_sctp_is_left_alone() -> None:
    frontend = Frontend(FRONT, SCTP, 36200)
    judged = StaleFlows([Stale(frontend, GONE)], ANCHORS)
    assert flow(SCTP, (HOST, 36200), GONE) not in judged
    assert list(judged.selections()) == []


class TestSelections:
    def test_a_few_backends_are_asked_for_one_by_one(self) -> None:
        judged = StaleFlows([Stale(Frontend(VIP, UDP, port), GONE) for port in (53, 54)], ANCHORS)
        assert list(judged.selections()) == [
            Selection(socket.AF_INET, UDP, reply_source=GONE[0], reply_source_port=8080)
        ]

    def test_many_are_one_list_of_each_protocol(self) -> None:
        """KP-189."""
        many = [Stale(Frontend(VIP, UDP, 53), (GONE[0], n)) for n in range(1, SINGLE_LOOKS + 2)]
        six = Stale(Frontend(parse("fd96::1"), TCP, 36200), (parse("fd00::2"), 80))
        assert list(StaleFlows(many, ANCHORS).selections()) == [Selection(socket.AF_INET, UDP)]
        assert list(StaleFlows([*many, six], ANCHORS).selections()) == [
            Selection(socket.AF_INET, UDP),
            Selection(socket.AF_INET6, TCP),
        ]

    def test_changes_of_tcp_at_cluster_ips_ask_for_nothing(self) -> None:
        """KP-197."""
        judged = StaleFlows([Stale(Frontend(VIP, TCP, 80), GONE)], ANCHORS)
        assert list(judged.selections()) == []


@pytest.mark.parametrize("backends", [1, SINGLE_LOOKS + 1])
def test_forget(backends: int) -> None:
    kernel = FakeKernel()
    gone = [udp(VIP, 53, (GONE[0], port)) for port in range(1, backends + 1)]
    kernel.flows = [*gone, udp(VIP, 53, KEPT), udp(VIP, 99, GONE)]
    stale = [Stale(Frontend(VIP, UDP, 53), (GONE[0], port)) for port in range(1, backends + 1)]
    assert forget(FakeConntrack(kernel), stale, ANCHORS) == backends
    assert kernel.flows == [udp(VIP, 53, KEPT), udp(VIP, 99, GONE)]
