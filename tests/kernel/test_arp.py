"""Who answers ARP for service addresses: nobody, unless `answer_arp` says so. Own addresses always."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from tests.lab.daemon import Daemon
from tests.lab.echo import Answer, Conversation, EchoServers, converse
from tests.lab.etcd import Etcd
from tests.lab.namespace import Host
from tests.lab.topology import Kind, Topology
from tests.lab.wait import until

CLUSTER_IP = "10.96.0.10"
EXTERNAL = "10.2.0.200"
"""On the clients' own segment, where an answer would draw their traffic."""
OWN = "10.2.0.11"
"""The host's own address, a service address, too."""
OUTSIDE = "172.20.0.1"
"""A cluster IP in no service CIDR."""
RECORDS = {
    "/services/web": {
        "clusterIP": CLUSTER_IP,
        "externalIPs": [EXTERNAL, OWN],
        "ports": [{"port": 80}],
        "drainSeconds": 10,
    },
    "/services/web/endpoints/a": "10.2.0.101",
    "/services/out": {"clusterIP": OUTSIDE, "ports": [{"port": 80}]},
}
SERVED = (CLUSTER_IP, EXTERNAL, OUTSIDE)

ETHERNET_ARP = 0x0806
REQUEST, REPLY = 1, 2
FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with Topology(hosts=1, backends=1, kind=Kind.FLAT) as topology:
        topology.client.ip(f"route add {EXTERNAL} via 10.2.0.11")
        yield topology


@pytest.fixture(scope="module")
def etcd(net: Topology) -> Iterator[Etcd]:
    with Etcd(net.store) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(net: Topology, etcd: Etcd) -> Iterator[Daemon]:
    with EchoServers() as servers, Daemon(net.hosts[0], etcd) as running:
        servers.listen(net.backends[0], tcp=[80])
        running.put(RECORDS)
        yield running


def answered(client: Host, wanted: tuple[str, ...], own: str) -> set[str]:
    """Those of the addresses that somebody answers ARP for.

    The host's own address is asked for last: requests are answered in order, so its answer ends the wait.
    """
    with client.inside():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERNET_ARP))
    with wire:
        wire.bind(("eth0", ETHERNET_ARP))
        wire.settimeout(20)
        source = wire.getsockname()[4]
        sender = socket.inet_aton(client.address4)
        for address in (*wanted, own):
            target = socket.inet_aton(address)
            head = (b"\xff" * 6, source, ETHERNET_ARP, 1, 0x0800, 6, 4, REQUEST)
            wire.send(FRAME.pack(*head, source, sender, bytes(6), target))
        found: set[str] = set()
        while own not in found:
            fields = FRAME.unpack_from(wire.recv(2048))
            if fields[7] == REPLY:
                found.add(socket.inet_ntoa(fields[9]))
        return found


def unanswered(host: Host) -> str:
    return host.run(["nft", "list", "set", "arp", "edgeproxy", "unanswered"]).stdout


def test_nobody_answers_for_service_addresses(net: Topology, daemon: Daemon) -> None:
    assert answered(net.client, SERVED, OWN) == {OWN}


def test_answer_arp_is_taken_at_reload_and_taken_back(net: Topology, daemon: Daemon) -> None:
    def becomes(answer_arp: bool, expected: set[str]) -> None:
        daemon.configure({"proxy": {"answer_arp": answer_arp}})
        daemon.reload()
        # The log tells of the reload before the kernel has followed.
        until(lambda: answered(net.client, SERVED, OWN) == expected, 20, f"answers for {expected}")

    becomes(True, {*SERVED, OWN})
    becomes(False, {OWN})


def test_an_address_the_host_comes_to_own_is_answered_for(net: Topology, daemon: Daemon) -> None:
    host = net.hosts[0]
    host.ip(f"addr add {EXTERNAL}/24 dev eth0")
    until(lambda: EXTERNAL in answered(net.client, SERVED, OWN), 20, "an answer for the new address")
    host.ip(f"addr del {EXTERNAL}/24 dev eth0")
    until(lambda: EXTERNAL not in answered(net.client, SERVED, OWN), 20, "silence again")


def test_a_draining_address_stays_silent_to_the_end(net: Topology, daemon: Daemon) -> None:
    conversation = converse(net.client, EXTERNAL, 80)
    assert isinstance(conversation, Conversation), conversation
    with conversation:
        daemon.put({"/services/web": None})
        assert isinstance(conversation.say("still there?"), Answer)
        assert EXTERNAL in unanswered(net.hosts[0])
        assert answered(net.client, SERVED, OWN) == {OWN}
    until(lambda: EXTERNAL not in unanswered(net.hosts[0]), 60, "the address is given up after the drain")
