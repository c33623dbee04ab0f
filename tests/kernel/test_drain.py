"""Draining: a removed TCP endpoint keeps its connections for a while and gets no new ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from edgeproxy.kernel.nft import Nft
from edgeproxy.model import SetName
from tests.lab.daemon import Daemon, ipvs
from tests.lab.echo import Answer, Conversation, EchoServers, Failure, ask_tcp, ask_udp, converse
from tests.lab.etcd import Etcd
from tests.lab.topology import Topology
from tests.lab.wait import until

LONG, SHORT = 600, 8
"""`drainSeconds`: one that no test lives to see the end of, one to wait for."""
A, B = "10.1.1.2:80", "10.1.2.2:80"
_numbers = itertools.count(10)


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with Topology(hosts=1, backends=2) as topology, EchoServers() as servers:
        for backend in topology.backends:
            servers.listen(backend, tcp=[80], udp=[53])
        yield topology


@pytest.fixture(scope="module")
def daemon(net: Topology) -> Iterator[Daemon]:
    with Etcd(net.store) as etcd, Daemon(net.hosts[0], etcd) as running:
        yield running


class Web:
    """A service of one test with endpoints a and b, on an address of its own: what drained before holds no other."""

    def __init__(self, net: Topology, daemon: Daemon) -> None:
        number = next(_numbers)
        self.net = net
        self.daemon = daemon
        self.key = f"/services/web{number}"
        self.address = f"10.96.0.{number}"
        self.node_port = 36200 + number
        self.put(LONG)
        daemon.put({f"{self.key}/endpoints/{backend.name}": backend.address4 for backend in net.backends})

    def put(self, seconds: int) -> None:
        """Writes the service with a duration of its drains."""
        ports = [
            {"name": "web", "port": 8000, "targetPort": 80, "nodePort": self.node_port},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ]
        self.daemon.put({self.key: {"clusterIP": self.address, "drainSeconds": seconds, "ports": ports}})

    def remove(self, name: str) -> None:
        """Deletes an endpoint."""
        self.daemon.put({f"{self.key}/endpoints/{name}": None})

    def delete(self) -> None:
        """Deletes everything."""
        self.daemon.put({self.key: None, f"{self.key}/endpoints/a": None, f"{self.key}/endpoints/b": None})

    def connection_to(self, backend: str, node_port: bool = False) -> Conversation:
        """An open connection that IPVS gave to one backend."""
        where = (self.net.hosts[0].address4, self.node_port) if node_port else (self.address, 8000)
        for _ in range(10):
            found = converse(self.net.client, *where)
            assert isinstance(found, Conversation), found
            answer = found.say()
            assert isinstance(answer, Answer), answer
            if answer.backend == backend:
                return found
            found.close()
        raise AssertionError(f"no connection to {backend} in ten attempts")

    def weights(self, frontend: str = "") -> dict[str, int]:
        """Weight of each real server, of the cluster address by default."""
        wanted = frontend or f"{self.address}:8000"
        lines = (line.split() for line in ipvs(self.daemon.host))
        return {words[4]: int(words[7]) for words in lines if words[0] == "-a" and words[2] == wanted}

    def seconds_left(self) -> float:
        """What remains of the drain at the cluster address."""
        packed = bytes(map(int, self.address.split(".")))
        with self.daemon.host.inside(), Nft() as nft:
            [held] = [held for held in nft.dump(SetName.DRAINS4) if held.element.key[0] == packed]
        assert held.remaining is not None
        return held.remaining


@pytest.fixture
def web(net: Topology, daemon: Daemon) -> Iterator[Web]:
    service = Web(net, daemon)
    yield service
    service.delete()


@pytest.mark.parametrize("node_port", [False, True])
def test_it_keeps_its_connection_and_takes_no_other(web: Web, node_port: bool) -> None:
    with web.connection_to("a", node_port) as kept:
        web.remove("a")
        frontend = f"169.254.96.1:{web.node_port}" if node_port else f"{web.address}:8000"
        assert web.weights(frontend) == {A: 0, B: 1}
        where = (web.net.hosts[0].address4, web.node_port) if node_port else (web.address, 8000)
        for _ in range(4):
            answer = ask_tcp(web.net.client, *where)
            assert isinstance(answer, Answer) and answer.backend == "b"
        assert isinstance(kept.say(), Answer)


def test_idle_means_gone_at_once(web: Web) -> None:
    web.remove("a")
    assert web.weights() == {B: 1}


def test_deadline(web: Web) -> None:
    web.put(SHORT)
    with web.connection_to("a") as kept:
        web.remove("a")
        assert isinstance(kept.say(), Answer)
        until(lambda: web.weights() == {B: 1}, 60, "the deadline is over", 0.1)
        assert isinstance(kept.say(timeout=2), Failure)


def test_a_restart_keeps_the_deadline(web: Web) -> None:
    with web.connection_to("a") as kept:
        web.remove("a")
        left = web.seconds_left()
        web.daemon.kill()
        assert isinstance(kept.say(), Answer)
        web.daemon.start()
        assert web.weights() == {A: 0, B: 1}
        assert 0 < web.seconds_left() < left <= LONG
        assert isinstance(kept.say(), Answer)


def test_a_service_that_is_deleted_is_served_for_old_flows(web: Web) -> None:
    with web.connection_to("a") as kept:
        web.delete()
        assert isinstance(kept.say(), Answer)
        assert isinstance(ask_tcp(web.net.client, web.address, 8000, timeout=1), Failure)
        assert isinstance(ask_udp(web.net.client, web.address, 53, timeout=1), Failure)
        assert isinstance(kept.say(), Answer)


def test_a_returning_endpoint_cancels_its_drain(web: Web) -> None:
    with web.connection_to("a") as kept:
        web.remove("a")
        assert 0 < web.seconds_left() <= LONG
        web.daemon.put({f"{web.key}/endpoints/a": {"address": "10.1.1.2", "weight": 3}})
        assert web.weights() == {A: 3, B: 1}
        with pytest.raises(ValueError, match="not enough values"):
            web.seconds_left()
        assert isinstance(kept.say(), Answer)


def test_udp_goes_at_once(web: Web) -> None:
    """A client that keeps its port gets the other backend, although its flow was bound to this one."""
    first = ask_udp(web.net.client, web.address, 53, source_port=40053)
    assert isinstance(first, Answer)
    web.remove(first.backend)
    second = ask_udp(web.net.client, web.address, 53, source_port=40053)
    assert isinstance(second, Answer) and second.backend != first.backend
