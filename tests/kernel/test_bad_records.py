"""Every bad record of the table in one store: each gets its finding, a good service notices none (KP-241)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bad_records import BAD_ENDPOINTS, BAD_SERVICES
from tests.lab.daemon import Daemon
from tests.lab.echo import Answer, EchoServers, ask_tcp
from tests.lab.etcd import Etcd
from tests.lab.topology import Topology
from tests.lab.wait import until

PER_TRANSACTION = 50
SERVICES = {f"/services/bad-{number}": bad for number, bad in enumerate(BAD_SERVICES)}
ENDPOINTS = {f"/services/good/endpoints/bad-{number}": bad for number, bad in enumerate(BAD_ENDPOINTS)}


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with Topology(hosts=1, backends=1) as topology:
        yield topology


@pytest.fixture(scope="module")
def daemon(net: Topology) -> Iterator[Daemon]:
    with Etcd(net.store) as etcd, EchoServers() as servers:
        servers.listen(net.backends[0], tcp=[80])
        with Daemon(net.hosts[0], etcd) as running:
            running.put(
                {
                    "/services/good": {
                        "clusterIP": "10.96.0.10",
                        "ports": [{"port": 80, "nodePort": 36200}],
                    },
                    "/services/good/endpoints/a": "10.1.1.2",
                }
            )
            yield running


def test_each_is_found_and_none_disturbs(net: Topology, daemon: Daemon) -> None:
    records = {key: bad.value for key, bad in (SERVICES | ENDPOINTS).items()} | {
        "/services/Not-A-Name": b"{}",
        "/services/web/backends/a": b"10.1.1.2",
    }
    keys = list(records)
    for start in range(0, len(keys), PER_TRANSACTION):
        revision = daemon.etcd.write({key: records[key] for key in keys[start : start + PER_TRANSACTION]})
        daemon.settled(revision)
        assert isinstance(ask_tcp(net.client, net.hosts[0].address4, 36200), Answer)
    found: dict[str, str] = {}
    for finding in daemon.status()["findings"]:
        found[finding["key"]] = found.get(finding["key"], "") + f"{finding['path']}: {finding['message']}\n"
    for key, bad in (SERVICES | ENDPOINTS).items():
        assert f"{bad.path}: " in found.get(key, "") and bad.message in found[key], f"{bad.name} ({key})"
    assert "/services/Not-A-Name" in found and "/services/web/backends/a" in found
    assert isinstance(ask_tcp(net.hosts[0], "10.96.0.10", 80), Answer)
    # Nothing of them is in the kernel: only the good service's two virtual servers are.
    assert daemon.status()["kernel"]["virtual_servers"] == 2
    # A few have other reasons (UnknownField).
    assert daemon.metric('edgeproxy_findings{reason="BadRecord"}') > 90


def test_deleting_them_clears_the_findings(daemon: Daemon) -> None:
    daemon.etcd.delete_prefix("/services/bad-")
    daemon.etcd.delete_prefix("/services/good/endpoints/bad-")
    daemon.etcd.delete("/services/Not-A-Name")
    daemon.etcd.delete("/services/web/backends/a")
    until(lambda: not [f for f in daemon.status()["findings"] if f["key"]], 60, "no record has a finding")
