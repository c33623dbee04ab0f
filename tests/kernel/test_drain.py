"""Draining: a removed TCP endpoint keeps its connections for a while and gets no new ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.daemon import Daemon, ipvs
from tests.lab.echo import Answer, Conversation, EchoServers, Failure, ask_tcp, ask_udp, converse
from tests.lab.etcd import Etcd
from tests.lab.topology import Topology
from tests.lab.wait import until

VIP = "10.96.0.10"
LONG, SHORT = 600, 8
"""`drainSeconds`: one that no test lives to see the end of, one to wait for."""


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


@pytest.fixture
def web(net: Topology, daemon: Daemon) -> Iterator[str]:
    """The name of a service with endpoints a and b; gone with all its drains afterwards."""
    service(daemon, LONG)
    daemon.put({f"/services/web/endpoints/{backend.name}": backend.address4 for backend in net.backends})
    yield "web"
    daemon.put(dict.fromkeys(["/services/web", *(f"/services/web/endpoints/{name}" for name in "ab")]))
    until(lambda: not ipvs(daemon.host), 30, "everything is gone", 0.1)


def service(daemon: Daemon, seconds: int) -> None:
    ports = [
        {"name": "web", "port": 8000, "targetPort": 80, "nodePort": 36200},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]
    daemon.put({"/services/web": {"clusterIP": VIP, "drainSeconds": seconds, "ports": ports}})


def connection_to(net: Topology, backend: str, address: str = VIP, port: int = 8000) -> Conversation:
    """An open connection that IPVS gave to one backend."""
    for _ in range(10):
        found = converse(net.client, address, port)
        assert isinstance(found, Conversation), found
        answer = found.say()
        assert isinstance(answer, Answer), answer
        if answer.backend == backend:
            return found
        found.close()
    raise AssertionError(f"no connection to {backend} in ten attempts")


def weights(daemon: Daemon, frontend: str = f"{VIP}:8000") -> dict[str, int]:
    """Weight of each real server of a frontend."""
    lines = (line.split() for line in ipvs(daemon.host))
    return {words[4]: int(words[7]) for words in lines if words[0] == "-a" and words[2] == frontend}


def remove(daemon: Daemon, name: str) -> None:
    daemon.put({f"/services/web/endpoints/{name}": None})


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize(("address", "port"), [(VIP, 8000), ("10.1.0.11", 36200)])
def test_it_keeps_its_connection_and_goes_when_idle(
    net: Topology, daemon: Daemon, address: str, port: int
) -> None:
    with connection_to(net, "a", address, port) as kept:
        remove(daemon, "a")
        frontend = f"{VIP}:8000" if address == VIP else "169.254.96.1:36200"
        assert weights(daemon, frontend) == {"10.1.1.2:80": 0, "10.1.2.2:80": 1}
        for _ in range(4):
            answer = ask_tcp(net.client, address, port)
            assert isinstance(answer, Answer) and answer.backend == "b"
        assert isinstance(kept.say(), Answer)
        # The same backend in the other virtual server had no connection.
        other = "169.254.96.1:36200" if address == VIP else f"{VIP}:8000"
        assert "10.1.1.2:80" not in weights(daemon, other) or daemon.status()["kernel"]["drains"] == 2


@pytest.mark.usefixtures("web")
def test_idle_means_gone_at_once(daemon: Daemon) -> None:
    remove(daemon, "a")
    assert weights(daemon) == {"10.1.2.2:80": 1}
    assert daemon.status()["kernel"]["drains"] == 0


@pytest.mark.usefixtures("web")
def test_deadline(net: Topology, daemon: Daemon) -> None:
    service(daemon, SHORT)
    with connection_to(net, "a") as kept:
        remove(daemon, "a")
        assert isinstance(kept.say(), Answer)
        until(lambda: weights(daemon) == {"10.1.2.2:80": 1}, 60, "the deadline is over", 0.1)
        assert isinstance(kept.say(timeout=2), Failure)


@pytest.mark.usefixtures("web")
def test_a_restart_keeps_the_deadline(net: Topology, daemon: Daemon) -> None:
    with connection_to(net, "a") as kept:
        remove(daemon, "a")
        left = seconds_left(daemon)
        daemon.kill()
        assert isinstance(kept.say(), Answer)
        daemon.start()
        assert weights(daemon) == {"10.1.1.2:80": 0, "10.1.2.2:80": 1}
        assert 0 < seconds_left(daemon) < left <= LONG
        assert isinstance(kept.say(), Answer)


def seconds_left(daemon: Daemon) -> float:
    """What remains of the only drain there is."""
    from edgeproxy.kernel.nft import Nft
    from edgeproxy.model import SetName

    with daemon.host.inside(), Nft() as nft:
        [held] = nft.dump(SetName.DRAINS4)
    assert held.remaining is not None
    return held.remaining


@pytest.mark.usefixtures("web")
def test_a_service_that_is_deleted_is_served_for_old_flows(net: Topology, daemon: Daemon) -> None:
    with connection_to(net, "a") as kept:
        daemon.put(dict.fromkeys(["/services/web", "/services/web/endpoints/a", "/services/web/endpoints/b"]))
        assert isinstance(kept.say(), Answer)
        assert ask_tcp(net.client, VIP, 8000, timeout=1) in (Failure.REFUSED, Failure.TIMED_OUT)
        assert isinstance(kept.say(), Answer)
        assert ask_udp(net.client, VIP, 53, timeout=1) is Failure.REFUSED


@pytest.mark.usefixtures("web")
def test_a_returning_endpoint_cancels_its_drain(net: Topology, daemon: Daemon) -> None:
    with connection_to(net, "a") as kept:
        remove(daemon, "a")
        assert daemon.status()["kernel"]["drains"] >= 1
        daemon.put({"/services/web/endpoints/a": {"address": "10.1.1.2", "weight": 3}})
        assert weights(daemon) == {"10.1.1.2:80": 3, "10.1.2.2:80": 1}
        assert daemon.status()["kernel"]["drains"] == 0
        assert isinstance(kept.say(), Answer)


@pytest.mark.usefixtures("web")
def test_udp_goes_at_once(net: Topology, daemon: Daemon) -> None:
    """A client that keeps its port gets the other backend, although its flow was bound to this one."""
    first = ask_udp(net.client, VIP, 53, source_port=40053)
    assert isinstance(first, Answer)
    remove(daemon, first.backend)
    second = ask_udp(net.client, VIP, 53, source_port=40053)
    assert isinstance(second, Answer) and second.backend != first.backend
    assert len(weights(daemon, f"{VIP}:53")) in (0, 1)
