"""What other programs do on a host: chains that drop, listening processes; and our accept rules among theirs."""

from __future__ import annotations

import socket
import subprocess

import pytest

from edgeproxy.coexistence import Coexistence
from edgeproxy.kernel import iptables
from edgeproxy.kernel.firewall import ClosedChain, Hook, closed_chains
from edgeproxy.kernel.ruleset import render
from edgeproxy.kernel.sockets import listening
from edgeproxy.model import Element, Protocol, Reason, SetName
from edgeproxy.settings import AcceptIn, Proxy
from edgeproxy.surroundings import survey
from tests.unit.site import FACTS, SETTINGS

pytestmark = pytest.mark.usefixtures("netns")
OTHERS = """
table ip filter {
    chain FORWARD { type filter hook forward priority 0; policy drop; }
    chain OUTPUT { type filter hook output priority 0; policy accept; }
}
table inet firewalld {
    chain filter_INPUT {
        type filter hook input priority 10; policy accept;
        ct state established,related accept
        counter reject with icmpx admin-prohibited
    }
    chain filter_FORWARD { type filter hook forward priority 10; policy accept; tcp dport 25 drop; }
    chain not_a_base_chain { drop; }
}
table ip nat {
    chain PREROUTING { type nat hook prerouting priority -100; policy accept; }
}
"""
FORWARD = ClosedChain("ip", "filter", "FORWARD", Hook.FORWARD, "policy drop")
FIREWALLD = ClosedChain("inet", "firewalld", "filter_INPUT", Hook.INPUT, "its last rule rejects")


@pytest.fixture
def others(netns: None) -> None:
    nft("-f", "-", stdin=OTHERS)


def nft(*words: str, stdin: str = "") -> None:
    subprocess.run(["nft", *words], input=stdin, text=True, check=True)


def rules() -> list[str]:
    listed = subprocess.run(["iptables", "-S"], text=True, capture_output=True, check=True)
    return [line for line in listed.stdout.splitlines() if "edgeproxy" in line]


@pytest.mark.usefixtures("others")
def test_chains_that_drop_by_default_are_found_and_ours_are_not_among_them() -> None:
    nft("-f", "-", stdin=render(survey(SETTINGS, FACTS).frame))
    assert closed_chains() == (FIREWALLD, FORWARD)


@pytest.mark.usefixtures("others")
def test_a_finding_names_the_chain_until_it_accepts_us() -> None:
    coexistence = Coexistence()
    coexistence.look_at_rules(Proxy())
    messages = {finding.path: finding.message for finding in coexistence.findings({})}
    assert set(messages) == {"ip filter FORWARD", "inet firewalld filter_INPUT"}
    assert 'accept_in = "iptables"' in messages["ip filter FORWARD"]
    assert "accept_in" not in messages["inet firewalld filter_INPUT"]
    coexistence.look_at_rules(Proxy(accept_in=AcceptIn.IPTABLES))
    assert {finding.path for finding in coexistence.findings({})} == {"inet firewalld filter_INPUT"}
    assert len(rules()) == len(list(iptables.rules(14)))
    coexistence.look_at_rules(Proxy())
    assert rules() == []


def test_accept_rules_are_added_once_and_removed_whole() -> None:
    expected = 2 * len(list(iptables.rules(14)))
    assert iptables.ensure(14) == expected
    assert iptables.ensure(14) == 0
    assert iptables.remove(14) == expected
    assert iptables.remove(14) == 0


def test_listening_processes_but_those_on_loopback() -> None:
    with (
        socket.socket() as tcp,
        socket.socket() as local,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp,
    ):
        tcp.bind(("0.0.0.0", 36200))
        tcp.listen()
        local.bind(("127.0.0.1", 36201))
        local.listen()
        udp.bind(("::", 36202))
        assert listening() == {(Protocol.TCP, 36200), (Protocol.UDP, 36202)}
        coexistence = Coexistence()
        coexistence.look_at_sockets()
        key = (SetName.NODE_PORTS4, (Protocol.TCP, 36200))
        [finding] = coexistence.findings({key: Element(*key, "node_port_cluster4", comment="web")})
        assert finding.reason is Reason.NODE_PORT_IN_USE
        assert "service web" in finding.message
