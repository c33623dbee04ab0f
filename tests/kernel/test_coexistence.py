"""A host that also does other things: firewalls, containers, bridges, floating addresses, processes of its own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from edgeproxy.cleanup import cleanup
from edgeproxy.config import load
from edgeproxy.model import Reason
from tests.lab.daemon import Daemon, ipvs
from tests.lab.echo import Answer, EchoServers, Failure, ask_tcp, ask_udp
from tests.lab.etcd import Etcd
from tests.lab.namespace import Host
from tests.lab.topology import Topology
from tests.lab.wait import until

VIP = "10.96.0.10"
PORT, NODE_PORT = 8000, 36200
OWN = "10.1.0.11"
CONTAINER = "10.1.2.2"
FLOATING = "10.1.0.50"
"""An external address on the clients' segment that keepalived would move from host to host."""
RECORDS = {
    "/services/web": {"clusterIP": VIP, "ports": [{"port": PORT, "targetPort": 80, "nodePort": NODE_PORT}]},
    "/services/web/endpoints/a": "10.1.1.2",
    "/services/names": {
        "clusterIP": VIP,
        "ports": [{"port": 53, "protocol": "UDP", "nodePort": NODE_PORT}],
    },
    "/services/names/endpoints/a": "10.1.1.2",
}
SETTINGS: dict[str, dict[str, object]] = {"proxy": {"service_cidrs": ["10.96.0.0/16"], "resync": "2s"}}

# As Docker writes it for `docker run -p 8000:8088 -p 36200:8088`, the container behind bridge seg2.
PUBLISHED = f"""\
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i seg2 -p tcp --dport {PORT} -j DNAT --to-destination {CONTAINER}:8088
-A DOCKER ! -i seg2 -p tcp --dport {NODE_PORT} -j DNAT --to-destination {CONTAINER}:8088
COMMIT
"""
ISOLATED = f"""\
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
-A FORWARD -o seg2 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o seg2 -j DOCKER
-A FORWARD -i seg2 ! -o seg2 -j ACCEPT
-A DOCKER -d {CONTAINER}/32 ! -i seg2 -o seg2 -p tcp -m tcp --dport 8088 -j ACCEPT
COMMIT
"""
# The shape of firewalld's default zone: what is not let in by name is rejected at the end.
FIREWALLD = """\
table inet firewalld {
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname "lo" accept
    iifname "store" accept
    icmp type echo-request accept
    meta l4proto ipv6-icmp accept
    jump services
    reject with icmpx type admin-prohibited
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    reject with icmpx type admin-prohibited
  }
  chain services {
  }
}
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with Topology(hosts=1, backends=2) as topology:
        topology.client.ip("route add 10.96.0.0/16 via 10.1.0.11")
        yield topology


@pytest.fixture(scope="module")
def etcd(net: Topology) -> Iterator[Etcd]:
    with Etcd(net.store) as server:
        yield server


@pytest.fixture(scope="module")
def servers(net: Topology) -> Iterator[EchoServers]:
    with EchoServers() as echo:
        echo.listen(net.backends[0], tcp=[80], udp=[53])
        echo.listen(net.backends[1], "container", tcp=[8088])
        echo.listen(net.hosts[0], "host-itself", tcp=[8443])
        yield echo


@pytest.fixture(scope="module")
def daemon(net: Topology, etcd: Etcd, servers: EchoServers) -> Iterator[Daemon]:
    with Daemon(net.hosts[0], etcd, SETTINGS) as running:
        running.put(RECORDS)
        yield running


@pytest.fixture
def host(net: Topology, daemon: Daemon) -> Host:
    return net.hosts[0]


def ways_in(net: Topology) -> dict[str, Answer | Failure]:
    """One request each way in: by client and host, to cluster IP and node port, over TCP and UDP."""
    return {
        f"{machine.name} {ask.__name__} {address}:{port}": ask(machine, address, port, timeout=5)
        for machine in (net.client, net.hosts[0])
        for ask, address, port in (
            (ask_tcp, VIP, PORT),
            (ask_tcp, OWN, NODE_PORT),
            (ask_udp, VIP, 53),
            (ask_udp, OWN, NODE_PORT),
        )
    }


def all_served(net: Topology) -> bool:
    """Whether every way in leads to the endpoint.

    Raises:
        AssertionError: one does not.
    """
    found = ways_in(net)
    said = {way: answer.backend if isinstance(answer, Answer) else answer for way, answer in found.items()}
    assert said == dict.fromkeys(said, "a")
    return True


def messages(daemon: Daemon, reason: Reason) -> list[str]:
    """What `edgeproxy status` says of one kind."""
    return [
        f"{finding['key']} {finding['path']}: {finding['message']}"
        for finding in daemon.status()["findings"]
        if finding["reason"] == reason
    ]


def told(daemon: Daemon, reason: Reason, text: str) -> bool:
    """Whether a finding of that kind holds a text."""
    return any(text in message for message in messages(daemon, reason))


def test_strict_reverse_path_filter(net: Topology, host: Host) -> None:
    names = ("all", "default", "lo", "eth0", "seg1", "seg2")
    for name in names:
        host.sysctl(f"net.ipv4.conf.{name}.rp_filter", 1)
    try:
        assert all_served(net)
    finally:
        for name in names:
            host.sysctl(f"net.ipv4.conf.{name}.rp_filter", 0)


def test_bridged_packets_pass_netfilter(net: Topology, host: Host, daemon: Daemon) -> None:
    """br_netfilter runs our nat chains for packets that are still at a port of a bridge."""
    subprocess.run(["modprobe", "br_netfilter"], check=True)
    default = "route add default via 10.1.0.2"
    host.ip(
        "link add br0 type bridge forward_delay 0",
        "link set br0 up",
        "link set eth0 master br0",
        f"addr del {OWN}/24 dev eth0",
        f"addr add {OWN}/24 dev br0",
        default,
    )
    try:
        assert host.sysctl("net.bridge.bridge-nf-call-iptables", 1) == "1"
        until(lambda: f"src {OWN}" in local_route(host), 20, "the local route has its source again")
        assert all_served(net)
    finally:
        host.ip("link del br0", f"addr add {OWN}/24 dev eth0", default)
    until(lambda: f"src {OWN}" in local_route(host), 20, "the local route has its source again")


def local_route(host: Host, network: str = "10.96.0.0/16") -> str:
    family = "-6" if ":" in network else "-4"
    return host.run(["ip", family, "route", "show", "table", "local", network]).stdout


@contextlib.contextmanager
def iptables(host: Host, *scripts: str) -> Iterator[None]:
    """Rules that other software has loaded meanwhile."""
    for script in scripts:
        host.run(["iptables-restore", "--noflush"], stdin=script)
    try:
        yield
    finally:
        for table in ("nat", "filter"):
            host.run(["nft", "add", "table", "ip", table])
            host.run(["nft", "delete", "table", "ip", table])


def test_a_published_container_port_does_not_take_a_service(net: Topology, host: Host) -> None:
    with iptables(host, PUBLISHED):
        assert all_served(net)
        published = ask_tcp(net.client, OWN, PORT)
        assert isinstance(published, Answer)
        assert published.backend == "container"


def test_a_forward_chain_that_drops_is_named_and_opened_on_request(
    net: Topology, host: Host, daemon: Daemon
) -> None:
    with iptables(host, PUBLISHED, ISOLATED):
        for text in ("ip filter FORWARD (forward hook, policy drop)", 'accept_in = "iptables"'):
            until(lambda text=text: told(daemon, Reason.FIREWALL, text), 30, f"a finding about {text}")
        assert ask_tcp(net.client, VIP, PORT, timeout=1) is Failure.TIMED_OUT

        daemon.configure({"proxy": {**SETTINGS["proxy"], "accept_in": "iptables"}})
        daemon.reload()
        until(lambda: not messages(daemon, Reason.FIREWALL), 30, "the finding is settled")
        assert all_served(net)
        published = ask_tcp(net.client, OWN, PORT)
        assert isinstance(published, Answer)
        assert published.backend == "container"

        # Somebody reloads the firewall: our rules come back by themselves.
        host.run(["iptables", "-F", "FORWARD"])
        until(lambda: isinstance(ask_tcp(net.client, VIP, PORT, timeout=1), Answer), 30, "accepted again")
        daemon.configure(SETTINGS)
        daemon.reload()


def test_a_firewall_that_rejects_at_the_end_is_named(net: Topology, host: Host, daemon: Daemon) -> None:
    host.run(["nft", "-f", "-"], stdin=FIREWALLD)
    try:
        for chain in ("filter_INPUT (input hook, its last rule rejects)", "filter_FORWARD (forward hook"):
            text = f"inet firewalld {chain}"
            until(lambda text=text: told(daemon, Reason.FIREWALL, text), 30, f"a finding about {text}")
        assert ask_tcp(net.client, VIP, PORT) is Failure.UNREACHABLE

        # What docs/operations.md tells to let in; established flows this firewall accepts anyway.
        opened = (
            "add rule inet firewalld services ip daddr 10.96.0.0/16 accept\n"
            "add rule inet firewalld services meta l4proto { tcp, udp } th dport 30000-36999 accept\n"
        )
        host.run(["nft", "-f", "-"], stdin=opened)
        assert all_served(net)
    finally:
        host.run(["nft", "delete", "table", "inet", "firewalld"])
    until(lambda: not messages(daemon, Reason.FIREWALL), 30, "the findings are settled")


def test_an_address_under_duplicate_detection_is_waited_for(host: Host, daemon: Daemon) -> None:
    cidr = "fd00:96::/112"
    daemon.configure({"proxy": {**SETTINGS["proxy"], "service_cidrs": ["10.96.0.0/16", cidr]}})
    daemon.reload()
    until(lambda: f"src {host.address6}" in local_route(host, cidr), 20, "the route has the host's source")
    host.sysctl("net.ipv6.conf.all.accept_dad", 1)
    host.sysctl("net.ipv6.conf.eth0.accept_dad", 1)
    host.sysctl("net.ipv6.conf.eth0.dad_transmits", 3)
    host.ip(f"addr del {host.address6}/64 dev eth0", "addr add fd00:1::77/64 dev eth0")
    assert "tentative" in host.run(["ip", "-6", "addr", "show", "dev", "eth0"]).stdout
    until(lambda: f"src {host.address6}" not in local_route(host, cidr), 20, "the dead source is gone")
    assert "tentative" in host.run(["ip", "-6", "addr", "show", "dev", "eth0"]).stdout
    route = local_route(host, cidr)
    assert route.startswith("local"), "the route stays, with another source or none"
    assert "fd00:1::77" not in route
    until(lambda: "src fd00:1::77" in local_route(host, cidr), 30, "the new source after the detection")
    host.sysctl("net.ipv6.conf.all.accept_dad", 0)
    host.sysctl("net.ipv6.conf.eth0.accept_dad", 0)
    host.ip("addr del fd00:1::77/64 dev eth0", f"addr add {host.address6}/64 dev eth0 nodad")
    daemon.configure(SETTINGS)
    daemon.reload()


def test_an_address_that_changes(net: Topology, host: Host) -> None:
    new = "10.1.0.21"
    net.client.ip(f"route replace 10.96.0.0/16 via {new}")
    host.ip(f"addr del {OWN}/24 dev eth0", f"addr add {new}/24 dev eth0", "route add default via 10.1.0.2")
    until(lambda: f"src {new}" in local_route(host), 20, "the local route has the new source")
    for machine in (host, net.client):
        for address, port in ((VIP, PORT), (new, NODE_PORT)):
            assert isinstance(ask_tcp(machine, address, port), Answer), (machine, address)
    net.client.ip(f"route replace 10.96.0.0/16 via {OWN}")
    host.ip(f"addr del {new}/24 dev eth0", f"addr add {OWN}/24 dev eth0", "route add default via 10.1.0.2")
    until(lambda: f"src {OWN}" in local_route(host), 20, "the local route has the old source")


def test_a_floating_address_comes_and_goes(net: Topology, host: Host, daemon: Daemon) -> None:
    def held() -> bool:
        return FLOATING in host.run(["nft", "list", "set", "inet", "edgeproxy", "addresses4"]).stdout

    daemon.put(
        {
            "/services/float": {
                "externalIPs": [FLOATING],
                "clusterIP": "10.96.0.50",
                "ports": [{"port": 80}],
            },
            "/services/float/endpoints/a": "10.1.1.2",
        }
    )
    net.client.ip(f"neigh replace {FLOATING} lladdr {mac(host)} dev eth0")
    assert held()
    assert isinstance(ask_tcp(net.client, FLOATING, 80), Answer)
    assert ask_tcp(net.client, FLOATING, 8443) is Failure.REFUSED
    assert ask_tcp(net.client, FLOATING, NODE_PORT) is Failure.REFUSED

    host.ip(f"addr add {FLOATING}/32 dev eth0")
    until(lambda: not held(), 20, "the address counts as the host's own")
    assert isinstance(ask_tcp(net.client, FLOATING, 80), Answer)
    for port, who in ((8443, "host-itself"), (NODE_PORT, "a")):
        for machine in (net.client, host):
            answer = ask_tcp(machine, FLOATING, port)
            assert isinstance(answer, Answer), (machine, port, answer)
            assert answer.backend == who
    assert f"src {OWN}" in local_route(host), "a floating address is nobody's source"

    host.ip(f"addr del {FLOATING}/32 dev eth0")
    until(held, 20, "the address is guarded again")
    until(lambda: isinstance(ask_tcp(net.client, FLOATING, 80, timeout=1), Answer), 20, "it is served again")
    assert ask_tcp(net.client, FLOATING, 8443) is Failure.REFUSED
    net.client.ip(f"neigh del {FLOATING} dev eth0")


def mac(host: Host) -> str:
    return host.run(["ip", "-br", "link", "show", "dev", "eth0"]).stdout.split()[2]


def test_a_process_on_a_node_port(net: Topology, host: Host, daemon: Daemon, servers: EchoServers) -> None:
    [listener] = servers.listen(host, "process", tcp=[NODE_PORT])
    (found,) = until(lambda: messages(daemon, Reason.NODE_PORT_IN_USE), 30, "a finding about the process")
    assert f"tcp port {NODE_PORT}" in found
    assert "service web" in found
    assert all_served(net)
    listener.close()
    until(lambda: not messages(daemon, Reason.NODE_PORT_IN_USE), 30, "the finding is settled")


def test_guard_rails(net: Topology, host: Host, daemon: Daemon) -> None:
    gateway, store = net.client.address4, net.store.address4
    range_of_all = {"proxy": {**SETTINGS["proxy"], "node_port_range": "1024-36999"}}
    daemon.configure(range_of_all)
    daemon.reload()
    daemon.put(
        {
            "/services/bad1": {
                "clusterIP": "10.96.9.1",
                "externalIPs": [gateway, store],
                "ports": [{"port": 80}],
            },
            "/services/bad1/endpoints/a": "10.1.1.2",
            "/services/bad2": {
                "clusterIP": "10.96.9.2",
                "ports": [
                    {"name": "health", "port": 80, "nodePort": 10256},
                    {"name": "metrics", "port": 81, "nodePort": 10249},
                ],
            },
            "/services/bad2/endpoints/a": "10.1.1.2:80",
        }
    )
    for text in (
        f"/services/bad1 externalIPs: {gateway} is a gateway of this host",
        f"/services/bad1 externalIPs: {store} is an etcd endpoint",
        "/services/bad2 ports[0].nodePort: port 10256 is used by [health] listen on this host",
        "/services/bad2 ports[1].nodePort: port 10249 is used by [metrics] listen on this host",
    ):
        until(lambda text=text: told(daemon, Reason.REFUSED, text), 30, f"a finding: {text}")
    served = "\n".join(ipvs(host))
    assert "10.96.9.1:80" in served
    for refused in (f"{gateway}:80", f"{store}:80", ":10256", ":10249"):
        assert refused not in served
    assert daemon.get("/healthz")[0] == 200
    daemon.put({"/services/bad1": None, "/services/bad2": None})
    daemon.configure(SETTINGS)
    daemon.reload()


def test_cleanup_twice(net: Topology, host: Host, daemon: Daemon) -> None:
    """The last test here: the daemon is gone after it."""
    host.run(["ipvsadm", "-A", "-t", "192.0.2.1:80", "-s", "rr"])
    with iptables(host, ISOLATED):
        before = host.run(["iptables-save", "-t", "filter"]).stdout.count("ACCEPT")
        daemon.configure({"proxy": {**SETTINGS["proxy"], "accept_in": "iptables"}})
        daemon.reload()
        until(lambda: "edgeproxy" in host.run(["iptables-save"]).stdout, 30, "accept rules of ours")
        assert daemon.terminate() == 0
        assert isinstance(ask_tcp(net.client, VIP, PORT), Answer), "a daemon that stops leaves traffic alone"

        said = daemon.command("cleanup").stdout
        for text in ("virtual server tcp/10.96.0.10:8000", "10.96.0.0/16", "inet edgeproxy", "iptables"):
            assert text in said
        assert ipvs(host) == ["-A -t 192.0.2.1:80 -s rr"]
        assert "edgeproxy" not in host.run(["nft", "list", "ruleset"]).stdout
        assert "proto 96" not in host.run(["ip", "route", "show", "table", "local"]).stdout
        assert host.run(["iptables-save", "-t", "filter"]).stdout.count("ACCEPT") == before
        assert host.in_namespace(lambda: list(cleanup(load(daemon.configuration)))) == []
