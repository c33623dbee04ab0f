"""What somebody else deletes or changes of ours is put right, and nothing else is touched.

Where the kernel tells (rule set, routes, addresses) the repair comes at once: the audit is an hour
away. IPVS tells nobody, so there it comes with the audit.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeproxy.kernel.nft_script import NftError
from tests.kernel.engine import picture_of
from tests.lab.daemon import Daemon
from tests.lab.echo import Answer, EchoServers, ask_tcp
from tests.lab.etcd import Etcd
from tests.lab.topology import Topology
from tests.lab.wait import until

PROXY = {"service_cidrs": ["10.96.0.0/16", "fd00:96::/112"]}
NOTICED = {"proxy": {**PROXY, "resync": "1h"}}
AUDITED = {"proxy": {**PROXY, "resync": "1s"}}
AT_ONCE = 10.0
"""Seconds: a second or less on a real machine, in emulation a reload of the tables takes some."""
WEB = {
    "clusterIPs": ["10.96.0.10", "fd00:96::10"],
    "externalIPs": ["192.0.2.1"],
    "ports": [{"port": 8000, "targetPort": 80, "nodePort": 36200}],
    "externalTrafficPolicy": "Local",
    "loadBalancerIPs": ["198.51.100.1"],
    "loadBalancerSourceRanges": ["10.1.0.0/24"],
}
THEIRS = "table inet theirs { chain input { type filter hook input priority 5; counter accept; }; }\n"


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with Topology(hosts=1, backends=2) as topology, EchoServers() as servers:
        for backend in topology.backends:
            servers.listen(backend, tcp=[80, 81])
        yield topology


@pytest.fixture(scope="module")
def daemon(net: Topology) -> Iterator[Daemon]:
    host = net.hosts[0]
    host.run(["nft", "-f", "-"], stdin=THEIRS)
    host.run(["ipvsadm", "-A", "-t", "10.1.0.11:7000", "-s", "wlc", "-p", "60"])
    host.run(["ipvsadm", "-a", "-t", "10.1.0.11:7000", "-r", "10.1.1.2:80", "-g", "-w", "7"])
    host.run(["ipvsadm", "-A", "-f", "77", "-s", "rr"])
    host.ip("route add local 172.31.0.0/16 dev lo table local")
    with Etcd(net.store) as etcd, Daemon(host, etcd, NOTICED) as running:
        running.put(
            {
                "/services/web": WEB,
                "/services/web/endpoints/a": net.backends[0].address4,
                "/services/web/endpoints/b": net.backends[1].address4,
                "/services/web/endpoints/local": {"address": "10.1.1.2", "port": 81, "nodeName": host.name},
                "/services/web/endpoints/six": net.backends[1].address6,
            }
        )
        yield running


@pytest.fixture(scope="module")
def whole(daemon: Daemon) -> list[str]:
    """The machine as it should be."""
    return picture_of(daemon.host)


def theirs(daemon: Daemon) -> str:
    """What is not ours on the machine, the table that somebody's start script writes included."""
    table = daemon.host.run(["nft", "-s", "list", "table", "inet", "theirs"]).stdout
    return table + daemon.host.run(["ip", "route", "show", "table", "local", "172.31.0.0/16"]).stdout


def is_whole(daemon: Daemon, whole: list[str]) -> bool:
    try:
        return picture_of(daemon.host) == whole and "chain" in theirs(daemon)
    except NftError:
        # A table or set is away.
        return False


RULES = [
    "flush set inet edgeproxy addresses4",
    "flush map inet edgeproxy frontends4",
    "flush map inet edgeproxy detours4",
    "flush set inet edgeproxy sources4",
    "flush map inet edgeproxy node_ports6",
    "flush table inet edgeproxy",
    "delete table inet edgeproxy",
    "delete table arp edgeproxy",
    f"flush ruleset\n{THEIRS}",
    "add element inet edgeproxy addresses4 { 10.96.0.77 }",
]


@pytest.mark.parametrize("script", RULES)
def test_rule_set(daemon: Daemon, whole: list[str], script: str) -> None:
    host, before = daemon.host, theirs(daemon)
    rules = host.run(["nft", "-s", "list", "chains"]).stdout
    host.run(["nft", "-f", "-"], stdin=script)
    until(lambda: is_whole(daemon, whole), AT_ONCE, f"repaired after: {script}", 0.1)
    assert sorted(host.run(["nft", "-s", "list", "chains"]).stdout) == sorted(rules)
    assert theirs(daemon) == before


def test_route(daemon: Daemon, whole: list[str]) -> None:
    daemon.host.ip("route del local 10.96.0.0/16 dev lo table local", "route del local 192.0.2.1 table local")
    until(lambda: is_whole(daemon, whole), AT_ONCE, "both routes are back", 0.1)


def test_the_source_follows_the_hosts_address(net: Topology, daemon: Daemon, whole: list[str]) -> None:
    host = daemon.host
    host.ip("addr del 10.1.0.11/24 dev eth0", "addr add 10.1.0.21/24 dev eth0")
    host.ip("route add default via 10.1.0.2")
    until(lambda: source(daemon) == "10.1.0.21", AT_ONCE, "the route names the new address", 0.1)
    answer = ask_tcp(host, "10.96.0.10", 8000)
    assert isinstance(answer, Answer)
    host.ip("addr del 10.1.0.21/24 dev eth0", "addr add 10.1.0.11/24 dev eth0")
    host.ip("route add default via 10.1.0.2")
    until(lambda: is_whole(daemon, whole), AT_ONCE, "the route names the old address again", 0.1)
    assert isinstance(ask_tcp(net.client, "10.96.0.10", 8000), Answer)


def source(daemon: Daemon) -> str:
    route = daemon.host.run(["ip", "route", "show", "table", "local", "10.96.0.0/16"]).stdout.split()
    return route[route.index("src") + 1] if "src" in route else ""


IPVS = [
    "-D -t 10.96.0.10:8000",
    "-D -t [fd00:96::10]:8000",
    "-d -t 10.96.0.10:8000 -r 10.1.1.2:80",
    "-e -t 10.96.0.10:8000 -r 10.1.1.2:80 -m -w 0",
    "-e -t 10.96.0.10:8000 -r 10.1.1.2:80 -m -w 1 -x 100",
    "-a -t 10.96.0.10:8000 -r 10.1.2.99:80 -m -w 0",
    "-E -t 10.96.0.10:8000 -s rr -p 50",
    "-E -t 10.96.0.10:8000 -s sh -b sh-port",
    "-D -t 169.254.96.1:36200",
    "-a -f 77 -r 10.1.1.2:0 -m",
]


def test_ipvs(daemon: Daemon, whole: list[str]) -> None:
    """An audit repairs whatever was done to ours, and leaves what was done to others."""
    host = daemon.host
    daemon.configure(AUDITED)
    daemon.reload()
    for change in IPVS[:-1]:
        host.run(["ipvsadm", *change.split()])
        until(lambda: is_whole(daemon, whole), AT_ONCE, f"repaired after: ipvsadm {change}", 0.1)
    host.run(["ipvsadm", *IPVS[-1].split()])
    mine = picture_of(host)
    assert mine != whole
    rules, syncs = daemon.metric('edgeproxy_sync_seconds_count{scope="full"}'), 3
    until(
        lambda: daemon.metric('edgeproxy_sync_seconds_count{scope="full"}') >= rules + syncs,
        60,
        "some audits are over",
        0.2,
    )
    assert picture_of(host) == mine
    host.run(["ipvsadm", "-d", "-f", "77", "-r", "10.1.1.2:0"])


@pytest.mark.parametrize("script", [f"flush ruleset\n{THEIRS}", "delete table inet edgeproxy"])
def test_while_the_daemon_is_down(daemon: Daemon, whole: list[str], script: str) -> None:
    """The flush empties the register; the virtual servers must not turn into somebody else's."""
    daemon.terminate()
    daemon.host.run(["nft", "-f", "-"], stdin=script)
    daemon.host.run(["ipvsadm", "-D", "-t", "10.96.0.10:8000"])
    daemon.host.run(["ipvsadm", "-d", "-t", "[fd00:96::10]:8000", "-r", "[fd00:1:2::2]:80"])
    daemon.host.ip("route del local 10.96.0.0/16 dev lo table local")
    daemon.start()
    until(lambda: is_whole(daemon, whole), AT_ONCE, "whole after the start", 0.1)
    assert not daemon.status()["findings"]
