"""The store dies, hangs, forgets its history, or holds nonsense: the kernel keeps what was good."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.engine import picture_of
from tests.lab.daemon import Daemon
from tests.lab.echo import Answer, EchoServers, ask_tcp
from tests.lab.etcd import Etcd
from tests.lab.topology import Topology
from tests.lab.wait import until

VIP = "10.96.0.10"
BAD = '{"clusterIP":"10.96.0.300"'


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with Topology(hosts=1, backends=2) as topology, EchoServers() as servers:
        for backend in topology.backends:
            servers.listen(backend, tcp=[80])
        yield topology


@pytest.fixture(scope="module")
def etcd(net: Topology) -> Iterator[Etcd]:
    with Etcd(net.store) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(net: Topology, etcd: Etcd) -> Iterator[Daemon]:
    settings = {"etcd": {"dial_timeout": "1s"}, "proxy": {"resync": "1s", "drain": "0s"}}
    with Daemon(net.hosts[0], etcd, settings) as running:
        running.put(
            {
                "/services/web": {"clusterIP": VIP, "ports": [{"port": 80, "nodePort": 36200}]},
                "/services/web/endpoints/a": net.backends[0].address4,
            }
        )
        yield running


def backends(net: Topology) -> set[str]:
    """Who answers."""
    answers = [ask_tcp(net.client, VIP, 80) for _ in range(4)]
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return {answer.backend for answer in answers if isinstance(answer, Answer)}


def store_is_lost(daemon: Daemon) -> bool:
    return "Store" in {finding["reason"] for finding in daemon.status()["findings"]}


def test_killed_and_back(net: Topology, etcd: Etcd, daemon: Daemon) -> None:
    before = picture_of(daemon.host)
    etcd.kill()
    until(lambda: store_is_lost(daemon), 60, "the daemon notices", 0.1)
    assert picture_of(daemon.host) == before
    assert backends(net) == {"a"}
    assert daemon.get("/readyz")[0] == daemon.get("/livez")[0] == 200
    etcd.start()
    daemon.put({"/services/web/endpoints/b": net.backends[1].address4})
    assert backends(net) == {"a", "b"}
    until(lambda: not daemon.status()["findings"], 30, "no finding is left", 0.1)


def test_hangs(net: Topology, etcd: Etcd, daemon: Daemon) -> None:
    before = picture_of(daemon.host)
    etcd.stop()
    try:
        until(lambda: store_is_lost(daemon), 120, "the daemon notices", 0.2)
        assert picture_of(daemon.host) == before
        assert backends(net) == {"a", "b"}
    finally:
        etcd.cont()
    daemon.put({"/services/web/endpoints/a": None})
    assert backends(net) == {"b"}
    until(lambda: not daemon.status()["findings"], 60, "no finding is left", 0.1)


def test_compacted_during_an_outage(net: Topology, etcd: Etcd, daemon: Daemon) -> None:
    """The daemon is cut off; what happens meanwhile it can only see in a new list."""
    before = picture_of(daemon.host)
    daemon.host.ip("link set store down")
    try:
        until(lambda: store_is_lost(daemon), 120, "the daemon notices", 0.2)
        etcd.put("/services/web/endpoints/a", net.backends[0].address4)
        etcd.delete("/services/web/endpoints/b")
        etcd.compact(etcd.revision())
        assert picture_of(daemon.host) == before
    finally:
        daemon.host.ip("link set store up")
    daemon.settled()
    assert backends(net) == {"a"}


def test_started_without_a_store(net: Topology, etcd: Etcd, daemon: Daemon) -> None:
    daemon.kill()
    etcd.kill()
    before = picture_of(daemon.host)
    daemon.start(wait=False)
    until(lambda: daemon.get("/readyz")[0] == 503, 60, "it answers", 0.1)
    until(lambda: store_is_lost(daemon), 60, "it says that the store is away", 0.1)
    assert picture_of(daemon.host) == before
    assert backends(net) == {"a"}
    etcd.start()
    until(daemon.is_ready, 60, "it is ready", 0.1)
    assert picture_of(daemon.host) == before


def bad_keys(daemon: Daemon) -> list[str]:
    return [finding["key"] for finding in daemon.status()["findings"] if finding["reason"] == "BadRecord"]


def test_a_bad_record_keeps_the_good_one(net: Topology, etcd: Etcd, daemon: Daemon) -> None:
    before = picture_of(daemon.host)
    daemon.put({"/services/web": BAD, "/services/web/endpoints/a": '{"address":"nowhere"}'})
    assert bad_keys(daemon) == ["/services/web", "/services/web/endpoints/a"]
    assert picture_of(daemon.host) == before
    daemon.kill()
    daemon.start()
    until(lambda: picture_of(daemon.host) == before, 30, "read back to the last good versions", 0.1)
    assert backends(net) == {"a"}
    assert bad_keys(daemon) == ["/services/web", "/services/web/endpoints/a"]


def test_a_bad_record_whose_history_is_gone(net: Topology, etcd: Etcd, daemon: Daemon) -> None:
    """Nobody knows what it should be: what the kernel has for it stays, the rest goes on."""
    before = picture_of(daemon.host)
    daemon.kill()
    etcd.compact(etcd.revision())
    daemon.start()
    daemon.put({"/services/other": {"clusterIP": "10.96.0.11", "ports": [{"port": 80}]}})
    assert set(before) <= set(picture_of(daemon.host))
    assert backends(net) == {"a"}
    daemon.put({"/services/web": None, "/services/web/endpoints/a": None, "/services/other": None})
    until(lambda: not any("server" in line for line in picture_of(daemon.host)), 30, "all is gone", 0.1)
