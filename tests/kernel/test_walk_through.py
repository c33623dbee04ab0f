"""The walk-through every reader knows, word for word, with real packets (KP-070, KP-071, KP-100)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab.daemon import Daemon
from tests.lab.echo import Answer, EchoServers, Failure, ask_tcp, ask_udp
from tests.lab.etcd import Etcd
from tests.lab.namespace import Host
from tests.lab.topology import Kind, Topology

Ask = Callable[..., Answer | Failure]
WALK_THROUGH = {
    "/services/web": '{"clusterIP":"10.96.0.10","ports":[{"port":8000,"targetPort":80,"nodePort":36200}]}',
    "/services/web/endpoints/a": '{"address":"10.1.1.2"}',
    "/services/web/endpoints/b": "10.1.2.2:80",
}


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with Topology(hosts=1, backends=2) as topology:
        topology.client.ip("route add 10.96.0.0/16 via 10.1.0.11", "route add fd00:96::/112 via fd00:1::11")
        yield topology


@pytest.fixture(scope="module")
def etcd(net: Topology) -> Iterator[Etcd]:
    with Etcd(net.store) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(net: Topology, etcd: Etcd) -> Iterator[Daemon]:
    settings = {"proxy": {"service_cidrs": ["10.96.0.0/16", "fd00:96::/112"]}}
    with EchoServers() as servers, Daemon(net.hosts[0], etcd, settings) as running:
        for backend in net.backends:
            servers.listen(backend, tcp=[80], udp=[53])
        yield running


def answers(ask: Ask, host: Host, address: str, port: int, count: int = 4) -> list[Answer]:
    """The answers to some requests; every one must succeed."""
    found = [ask(host, address, port) for _ in range(count)]
    assert all(isinstance(answer, Answer) for answer in found), found
    return [answer for answer in found if isinstance(answer, Answer)]


def test_word_for_word(net: Topology, etcd: Etcd, daemon: Daemon) -> None:
    host, client = net.hosts[0], net.client
    for key, value in WALK_THROUGH.items():
        net.store.run(["etcdctl", "--endpoints", etcd.endpoint, "put", key, value])
    daemon.settled()
    for machine, url in (
        (client, "http://10.96.0.10:8000/"),
        (host, "http://10.96.0.10:8000/"),
        (client, f"http://{host.address4}:36200/"),
        (host, f"http://{host.address4}:36200/"),
    ):
        said = {machine.run(["curl", "-sS", "-m", "5", url]).stdout.split()[0] for _ in range(4)}
        assert said == {"a", "b"}, f"{machine} {url}"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("ask", [ask_tcp, ask_udp])
def test_every_way_in(net: Topology, daemon: Daemon, ask: Ask, family: int) -> None:
    host, client = net.hosts[0], net.client
    tcp = ask is ask_tcp
    vip = f"10.96.1.{1 if tcp else 2}" if family == 4 else f"fd00:96::{1 if tcp else 2}:{1}"
    node_port = 30000 + family * 10 + tcp
    name = f"all-{family}-{'tcp' if tcp else 'udp'}"
    port = {
        "port": 8000,
        "protocol": "TCP" if tcp else "UDP",
        "targetPort": 80 if tcp else 53,
        "nodePort": node_port,
    }
    address = f"address{family}"
    daemon.put(
        {
            f"/services/{name}": {"clusterIP": vip, "ports": [port]},
            **{
                f"/services/{name}/endpoints/{backend.name}": {"address": getattr(backend, address)}
                for backend in net.backends
            },
        }
    )
    own = getattr(host, address)
    for machine in (client, host):
        for target, number in ((vip, 8000), (own, node_port)):
            found = answers(ask, machine, target, number)
            assert {answer.backend for answer in found} == {"a", "b"}
            # A client that is not a local workload, and every node port, is masqueraded.
            assert getattr(client, address) not in {answer.source for answer in found}
            if machine is client:
                # Never a port that a node port could be (kubernetes/kubernetes#139276).
                assert all(1024 <= answer.source_port < 30000 for answer in found), found


def test_other_ports_of_a_service_address_refuse_and_other_addresses_are_silent(
    net: Topology, daemon: Daemon
) -> None:
    daemon.put(WALK_THROUGH)
    with EchoServers() as servers:
        servers.listen(net.hosts[0], "host-itself", tcp=[8443])
        for machine in (net.client, net.hosts[0]):
            assert isinstance(ask_tcp(machine, net.hosts[0].address4, 8443), Answer)
            assert ask_tcp(machine, "10.96.0.10", 8443) is Failure.REFUSED
            assert ask_udp(machine, "10.96.0.10", 8000) is Failure.REFUSED
            assert ask_tcp(machine, "10.96.77.77", 8443, timeout=0.5) is Failure.TIMED_OUT
            assert ask_tcp(machine, "169.254.96.1", 36200, timeout=0.5) is Failure.TIMED_OUT


def test_no_endpoint_refuses(net: Topology, daemon: Daemon) -> None:
    daemon.put({"/services/empty": {"clusterIP": "10.96.0.99", "ports": [{"port": 80, "nodePort": 36299}]}})
    for machine in (net.client, net.hosts[0]):
        assert ask_tcp(machine, "10.96.0.99", 80) is Failure.REFUSED
        assert ask_tcp(machine, net.hosts[0].address4, 36299) is Failure.REFUSED


def test_a_file_that_cannot_be_reloaded_is_a_finding_and_changes_nothing(
    net: Topology, daemon: Daemon
) -> None:
    daemon.put(WALK_THROUGH)
    good = daemon.configuration.read_text()
    daemon.configuration.write_text(good + 'schedular = "lc"\n')
    daemon.reload()
    messages = [f["message"] for f in daemon.status()["findings"] if f["reason"] == "Configuration"]
    assert len(messages) == 1
    assert "schedular" in messages[0] or "unknown key" in messages[0]
    answers(ask_tcp, net.client, "10.96.0.10", 8000)
    daemon.configuration.write_text(good)
    daemon.reload()
    assert not [f for f in daemon.status()["findings"] if f["reason"] == "Configuration"]


def test_flat_network() -> None:
    """Clients, hosts and backends on one segment: an unmasqueraded reply would bypass the host."""
    with Topology(hosts=1, backends=2, kind=Kind.FLAT) as net, Etcd(net.store) as etcd:
        host = net.hosts[0]
        net.client.ip(f"route add 10.96.0.0/16 via {host.address4}")
        with EchoServers() as servers, Daemon(host, etcd) as daemon:
            for backend in net.backends:
                servers.listen(backend, tcp=[80])
            daemon.put(
                {
                    "/services/web": {
                        "clusterIP": "10.96.0.10",
                        "ports": [{"port": 8000, "targetPort": 80, "nodePort": 36200}],
                    },
                    "/services/web/endpoints/a": net.backends[0].address4,
                    "/services/web/endpoints/b": net.backends[1].address4,
                    "/services/web/endpoints/host": f"{host.address4}:80",
                }
            )
            servers.listen(host, tcp=[80])
            for machine in (net.client, host):
                for target, port in (("10.96.0.10", 8000), (host.address4, 36200)):
                    found = answers(ask_tcp, machine, target, port, 6)
                    assert {answer.backend for answer in found} == {"a", "b", "host0"}
