"""Which tracked flows are forgotten, with flows of real packets through a DNAT in an empty network namespace."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Generator, Iterator, Sequence

import pytest

from edgeproxy.address import parse, parse_network
from edgeproxy.kernel.conntrack import Conntrack, Flow, Selection
from edgeproxy.kernel.ruleset import NodePortAnchor, anchor
from edgeproxy.model import Frontend, Protocol
from edgeproxy.plan import Stale
from edgeproxy.stale import forget
from tests.conformance.behaviour import kp
from tests.native.conftest import netns, sh

__all__ = ["netns"]

HOST, VIP, UNSERVED = "10.0.0.2", "10.96.0.1", "10.96.0.99"
OLD, NEW = "10.0.1.1", "10.0.1.2"
ANCHORS = (parse_network("169.254.96.0/20"), parse_network("fd96:6564:6765::/64"))
NODE_PORT = 36053
DNS = Frontend(parse(VIP), Protocol.UDP, 53)
ON_NODE = Frontend(anchor(ANCHORS[0], NodePortAnchor.FRONT), Protocol.UDP, NODE_PORT)
# Ports 53 and 54 lead to the backend that leaves, 55 to the one that stays; only 53 is a service port.
RULES = f"""
table inet test {{
  chain output {{
    type nat hook output priority -100
    ip daddr {VIP} udp dport {{ 53, 54 }} dnat ip to {OLD}:5353
    ip daddr {VIP} udp dport 55 dnat ip to {NEW}:5353
    ip daddr {VIP} tcp dport 80 dnat ip to {OLD}:8080
    ip daddr {VIP} sctp dport 80 dnat ip to {OLD}:8080
    fib daddr type local udp dport {NODE_PORT} dnat ip to {OLD}:5353
  }}
}}
"""


class Counted(Conntrack):
    """Counts the lists that are asked for and the flows that are deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.lists = self.seen = self.deletions = 0

    def flows(self, selection: Selection) -> Generator[Flow, None, None]:
        self.lists += 1
        for flow in super().flows(selection):
            self.seen += 1
            yield flow

    def delete(self, flows: Sequence[Flow]) -> int:
        self.deletions += len(flows)
        return super().delete(flows)


@pytest.fixture
def conntrack(netns: None) -> Iterator[Counted]:
    for address in (HOST, OLD, NEW):
        sh("ip", "address", "add", f"{address}/32", "dev", "lo")
    sh("ip", "route", "add", "local", "10.96.0.0/16", "dev", "lo", "src", HOST)
    sh("nft", "-f", "-", script=RULES)
    with Counted() as opened:
        yield opened


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def send(sockets: contextlib.ExitStack, to: str, port: int) -> int:
    """One datagram from a new port; the port."""
    sender = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sender.connect((to, port))
    sender.send(b"x")
    return int(sender.getsockname()[1])


def listen(sockets: contextlib.ExitStack, kind: int, address: str, port: int) -> None:
    server = sockets.enter_context(socket.socket(socket.AF_INET, kind))
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen()


def left(conntrack: Conntrack, protocol: Protocol = Protocol.UDP) -> set[int]:
    """Destination ports of the flows that clients have."""
    return {f.original.destination_port for f in conntrack.flows(Selection(socket.AF_INET, protocol))}


def gone(frontend: Frontend = DNS, port: int = 5353) -> Stale:
    """The old backend left."""
    return Stale(frontend, (parse(OLD), port))


@kp("KP-184", "Flows over TCP to an endpoint that left are never touched, and no list is made for SCTP")
def test_kp_184_established_flows_stay(conntrack: Counted, sockets: contextlib.ExitStack) -> None:
    listen(sockets, socket.SOCK_STREAM, OLD, 8080)
    sockets.enter_context(socket.create_connection((VIP, 80)))
    for protocol in (Protocol.TCP, Protocol.SCTP):
        for address in (VIP, "169.254.96.1"):
            frontend = Frontend(parse(address), protocol, 80)
            assert forget(conntrack, [gone(frontend, 8080)], ANCHORS) == 0
    assert left(conntrack, Protocol.TCP) == {80}
    assert conntrack.deletions == 0


@kp("KP-185", "UDP flows to a service address on a port that is no service port are kept")
def test_kp_185_other_ports_of_the_address(conntrack: Counted, sockets: contextlib.ExitStack) -> None:
    listen(sockets, socket.SOCK_DGRAM, OLD, 5353)
    for port in (53, 54):
        send(sockets, VIP, port)
    assert forget(conntrack, [gone()], ANCHORS) == 1
    assert left(conntrack) == {54}


@kp("KP-187", "A flow let through while there was no endpoint at all is forgotten once there is one")
def test_kp_187_flows_that_were_never_translated(conntrack: Counted, sockets: contextlib.ExitStack) -> None:
    unserved = Frontend(parse(VIP), Protocol.UDP, 57)
    for address, port in ((VIP, 57), (UNSERVED, 57), (VIP, 58), (VIP, 55)):
        send(sockets, address, port)
    assert forget(conntrack, [Stale(unserved, None)], ANCHORS) == 1
    flows = conntrack.flows(Selection(socket.AF_INET, Protocol.UDP))
    kept = {(f.original.destination, f.original.destination_port) for f in flows}
    assert kept == {(parse(UNSERVED), 57), (parse(VIP), 58), (parse(VIP), 55)}


@kp("KP-189", "Of very many flows the stale ones are found with one list, and nothing but them is deleted")
def test_kp_189_one_list(conntrack: Counted, sockets: contextlib.ExitStack) -> None:
    others, stale = 20_000, 25
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 4001))
        for port in range(1, others + 1):
            sender.sendto(b"x", ("127.0.0.1", port))
    listen(sockets, socket.SOCK_DGRAM, OLD, 5353)
    for _ in range(stale):
        send(sockets, VIP, 53)
    assert forget(conntrack, [gone()], ANCHORS) == stale
    assert (conntrack.lists, conntrack.deletions) == (1, stale)
    assert conntrack.seen == stale, "the kernel leaves out the others"
    assert len(list(conntrack.flows(Selection(socket.AF_INET, Protocol.UDP)))) == others


@kp("KP-197", "A change of TCP endpoints alone lists no tracked flows")
def test_kp_197_no_list_for_tcp(conntrack: Counted, sockets: contextlib.ExitStack) -> None:
    listen(sockets, socket.SOCK_DGRAM, OLD, 5353)
    send(sockets, VIP, 53)
    web = Frontend(parse(VIP), Protocol.TCP, 80)
    assert forget(conntrack, [gone(web, 8080), Stale(web, None)], ANCHORS) == 0
    assert conntrack.lists == 0


@kp("KP-183", "UDP flows to a node port, on whatever address of the host, are forgotten with their endpoint")
def test_kp_183_any_address_of_the_host(conntrack: Counted, sockets: contextlib.ExitStack) -> None:
    listen(sockets, socket.SOCK_DGRAM, OLD, 5353)
    listen(sockets, socket.SOCK_DGRAM, NEW, 5353)
    for address in (HOST, NEW):
        send(sockets, address, NODE_PORT)
    send(sockets, VIP, 55)
    assert forget(conntrack, [gone(ON_NODE)], ANCHORS) == 2
    assert left(conntrack) == {55}
