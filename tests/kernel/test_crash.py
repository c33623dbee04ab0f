"""The daemon dies at random moments while records change; it comes back, and traffic never noticed."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import pytest

from edgeproxy.config import load
from tests.kernel.engine import fresh_picture, picture_of
from tests.lab.daemon import Daemon
from tests.lab.echo import Answer, Conversation, EchoServers, ask_tcp, converse
from tests.lab.etcd import Etcd
from tests.lab.topology import Topology
from tests.lab.wait import until

KILLS = 8
CIDRS = {"proxy": {"service_cidrs": ["10.96.0.0/16", "fd00:96::/112"]}}
WAYS_IN = [("10.96.0.10", 8000), ("10.1.0.11", 36200), ("fd00:96::10", 8000), ("fd00:1::11", 36200)]


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
def records(net: Topology, etcd: Etcd) -> dict[str, str]:
    """A service that stays; what is in the store is kept here as it changes."""
    port = {"port": 8000, "targetPort": 80, "nodePort": 36200}
    written = {"/services/web": json.dumps({"clusterIPs": ["10.96.0.10", "fd00:96::10"], "ports": [port]})}
    for backend in net.backends:
        written[f"/services/web/endpoints/{backend.name}4"] = backend.address4
        written[f"/services/web/endpoints/{backend.name}6"] = backend.address6
    etcd.write(written)
    return written


@pytest.fixture(scope="module")
def daemon(net: Topology, etcd: Etcd, records: dict[str, str]) -> Iterator[Daemon]:
    with Daemon(net.hosts[0], etcd, CIDRS) as running:
        yield running


@pytest.fixture(scope="module")
def open_connections(net: Topology, daemon: Daemon) -> Iterator[list[Conversation]]:
    """From the client and the host itself, through every way in; open as long as the tests run."""
    with ExitStack() as stack:
        found = []
        for machine in (net.client, net.hosts[0]):
            for address, port in WAYS_IN:
                conversation = converse(machine, address, port)
                assert isinstance(conversation, Conversation), f"{machine} {address} {port}: {conversation}"
                found.append(stack.enter_context(conversation))
        yield found


class Churn:
    """A thread that puts and deletes services and endpoints until it is left."""

    def __init__(self, etcd: Etcd, records: dict[str, str], seed: int) -> None:
        self._etcd = etcd
        self._records = records
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            changes = dict(self._change() for _ in range(self._random.randint(1, 5)))
            self._etcd.write(changes)
            for key, value in changes.items():
                if value is None:
                    self._records.pop(key, None)
                else:
                    self._records[key] = value

    def _change(self) -> tuple[str, str | None]:
        choose = self._random
        number = choose.randrange(12)
        if choose.random() < 0.4:
            ports = [{"port": choose.randint(80, 82), "nodePort": 30000 + number}]
            service = {"clusterIPs": [f"10.96.1.{number}", f"fd00:96::a{number:x}"], "ports": ports}
            return f"/services/s{number}", choose.choice([json.dumps(service), None])
        name = choose.randrange(6)
        # The service that stays gets backends that come and go, too, but no new connections meanwhile.
        owner = choose.choice([f"s{number}", f"s{number}", "web"])
        address = choose.choice([f"10.1.1.{name + 100}", f"fd00:1:1::{name + 100}"])
        weight = choose.randint(1, 4)
        endpoint = json.dumps({"address": address, "port": 80, "weight": weight})
        return f"/services/{owner}/endpoints/e{name}", choose.choice([endpoint, endpoint, None])


def all_answer(conversations: list[Conversation]) -> bool:
    return all(isinstance(conversation.say(timeout=10), Answer) for conversation in conversations)


def test_killed_during_churn(
    etcd: Etcd, daemon: Daemon, records: dict[str, str], open_connections: list[Conversation]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose, moment = random.Random(seed), threading.Event()
    with Churn(etcd, records, seed):
        for number in range(KILLS):
            # Half of the deaths hit the start, the moment when most is written.
            if number % 2:
                seen = daemon.output().count("records at revision")
                daemon.start(wait=False)
                until(lambda: daemon.output().count("records at revision") > seen, 180, "it has a snapshot")  # noqa: B023
                moment.wait(choose.uniform(0, 0.5))
            elif number:
                daemon.start()
                moment.wait(choose.uniform(0, 1))
            daemon.kill()
            assert all_answer(open_connections)
        daemon.start()
    daemon.settled()
    wanted = fresh_picture(load(daemon.configuration), records)
    until(lambda: picture_of(daemon.host) == wanted, 10, "the kernel is that of a fresh start")
    assert not daemon.status()["findings"]
    assert all_answer(open_connections)


def test_restart_writes_nothing(
    net: Topology, etcd: Etcd, daemon: Daemon, records: dict[str, str], open_connections: list[Conversation]
) -> None:
    etcd.write({key: None for key in records if not key.startswith("/services/web")})
    daemon.put(dict.fromkeys(etcd_churned(records)))
    before, rules = picture_of(daemon.host), generation(daemon)
    assert daemon.terminate() == 0
    for machine in (net.client, net.hosts[0]):
        for address, port in WAYS_IN:
            answers = [ask_tcp(machine, address, port) for _ in range(4)]
            assert {answer.backend for answer in answers if isinstance(answer, Answer)} == {"a", "b"}
    assert (picture_of(daemon.host), generation(daemon)) == (before, rules)
    daemon.start()
    assert (picture_of(daemon.host), generation(daemon)) == (before, rules)
    page = daemon.get("/metrics", 10249)[1]
    assert [line for line in page.splitlines() if line.startswith("edgeproxy_operations_total")] == []
    assert all_answer(open_connections)


def etcd_churned(records: dict[str, str]) -> list[str]:
    """The endpoints that churn gave to the service that stays."""
    return [key for key in records if key.startswith("/services/web/endpoints/e")]


def generation(daemon: Daemon) -> str:
    """The number of the rule set's generation: it grows with each transaction, whoever makes it."""
    from edgeproxy.kernel.nft import Nft

    with daemon.host.inside(), Nft() as nft:
        return str(nft.generation().number)
