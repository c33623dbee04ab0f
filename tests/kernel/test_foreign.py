"""Virtual servers and tables of other programs on the same host survive everything we do.

Hand-made ones (ipvsadm), one of them where a record wants to be served, a firewall mark, and a
real keepalived's; restarts, audits, a flushed register and `edgeproxy cleanup` pass over them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon, ipvs
from tests.lab.echo import Answer, EchoServers, ask_tcp
from tests.lab.etcd import Etcd
from tests.lab.topology import Topology
from tests.lab.wait import until

THEIRS = "table inet theirs { set kept { type ipv4_addr; elements = { 192.0.2.77 }; }; }"
WANTED = "10.96.0.20:80"
LATE = "10.96.0.21:80"
KEEPALIVED = """
global_defs {
    router_id lab
}
virtual_server 10.1.0.11 7100 {
    delay_loop 600
    lb_algo wlc
    lb_kind NAT
    protocol TCP
    real_server 10.1.1.2 80 {
        weight 3
    }
}
"""


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
def keepalived(net: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """keepalived's check process on the host, with one virtual server."""
    if shutil.which("keepalived") is None:
        pytest.skip("keepalived is not installed")
    directory, host = tmp_path_factory.mktemp("keepalived"), net.hosts[0]
    (directory / "keepalived.conf").write_text(KEEPALIVED)
    argv = ["keepalived", "--dont-fork", "--check", "--use-file", str(directory / "keepalived.conf")]
    argv += ["--pid", str(directory / "pid"), "--checkers_pid", str(directory / "checkers")]
    with Path(directory, "log").open("w") as log:
        process = host.popen([*argv, "--log-console"], stdout=log, stderr=subprocess.STDOUT)
        until(lambda: "10.1.0.11:7100" in " ".join(ipvs(host)), 60, "keepalived serves", 0.2)
        yield
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def theirs(net: Topology, keepalived: None) -> list[str]:
    """What others made, before edgeproxy ever ran here."""
    host = net.hosts[0]
    host.run(["nft", "-f", "-"], stdin=THEIRS)
    for line in (
        "-A -t 10.1.0.11:7000 -s wlc -p 60",
        "-a -t 10.1.0.11:7000 -r 10.1.1.2:80 -g -w 7",
        "-A -f 77 -s rr",
        "-a -f 77 -r 10.1.2.2:0 -m",
        f"-A -t {WANTED} -s sh",
        f"-a -t {WANTED} -r 10.1.1.2:80 -m -w 9",
    ):
        host.run(["ipvsadm", *line.split()])
    return list(ipvs(host))


@pytest.fixture(scope="module")
def daemon(net: Topology, etcd: Etcd, theirs: list[str]) -> Iterator[Daemon]:
    etcd.write(
        {
            "/services/web": {"clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 36200}]},
            "/services/web/endpoints/b": net.backends[1].address4,
            "/services/taken": {
                "clusterIP": "10.96.0.20",
                "ports": [{"port": 80}],
            },
            "/services/taken/endpoints/b": net.backends[1].address4,
        }
    )
    with Daemon(net.hosts[0], etcd, {"proxy": {"resync": "1s"}}) as running:
        yield running


def all_theirs(daemon: Daemon, theirs: list[str]) -> bool:
    """Whether everything of others is there as they made it."""
    table = daemon.host.run(["nft", "list", "table", "inet", "theirs"], check=False).stdout
    return set(theirs) <= set(ipvs(daemon.host)) and "192.0.2.77" in table


def audited(daemon: Daemon) -> None:
    """Waits for two audits that begin from now on."""
    name = 'edgeproxy_sync_seconds_count{scope="full"}'
    done = daemon.metric(name) + 3
    until(lambda: daemon.metric(name) >= done, 60, "two audits are over", 0.2)


def foreign(daemon: Daemon) -> list[str]:
    """The keys of services that found somebody else's virtual server."""
    found = daemon.status()["findings"]
    assert {finding["reason"] for finding in found} <= {"ForeignVirtualServer"}, found
    return [finding["key"] for finding in found]


def at(daemon: Daemon, frontend: str) -> list[str]:
    return [line for line in ipvs(daemon.host) if f" {frontend} " in line]


def test_a_start_passes_over_them(net: Topology, daemon: Daemon, theirs: list[str]) -> None:
    assert all_theirs(daemon, theirs)
    assert foreign(daemon) == ["/services/taken"]
    assert len(at(daemon, WANTED)) == 2
    answer = ask_tcp(net.client, "10.96.0.10", 80)
    assert isinstance(answer, Answer) and answer.backend == "b"


def test_records_and_audits_pass_over_them(net: Topology, daemon: Daemon, theirs: list[str]) -> None:
    daemon.put({"/services/taken/endpoints/a": net.backends[0].address4})
    daemon.put({"/services/taken/endpoints/a": None, "/services/taken/endpoints/b": None})
    audited(daemon)
    assert all_theirs(daemon, theirs) and len(at(daemon, WANTED)) == 2
    assert foreign(daemon) == ["/services/taken"]


def test_one_that_comes_between_two_audits(net: Topology, daemon: Daemon, theirs: list[str]) -> None:
    """The mirror does not know it: the kernel refuses ours, which must leave nothing behind in theirs."""
    host = daemon.host
    daemon.configure({"proxy": {"resync": "1h"}})
    daemon.reload()
    host.run(["ipvsadm", "-A", "-t", LATE, "-s", "lc"])
    host.run(["ipvsadm", "-a", "-t", LATE, "-r", "10.1.2.2:80", "-m", "-w", "4"])
    before = at(daemon, LATE)
    daemon.put(
        {
            "/services/late": {"clusterIP": "10.96.0.21", "ports": [{"port": 80}]},
            "/services/late/endpoints/a": net.backends[0].address4,
            "/services/late/endpoints/b": {"address": net.backends[1].address4, "weight": 1},
        }
    )
    assert at(daemon, LATE) == before
    assert foreign(daemon) == ["/services/late", "/services/taken"]
    daemon.configure({"proxy": {"resync": "1s"}})
    daemon.reload()
    audited(daemon)
    daemon.kill()
    daemon.start()
    assert at(daemon, LATE) == before
    assert foreign(daemon) == ["/services/late", "/services/taken"]
    daemon.put({"/services/late": None})
    assert at(daemon, LATE) == before
    assert all_theirs(daemon, theirs)


@pytest.mark.parametrize("flush", [False, True])
def test_restarts_pass_over_them(daemon: Daemon, theirs: list[str], flush: bool) -> None:
    daemon.kill()
    if flush:
        daemon.host.run(["nft", "-f", "-"], stdin=f"flush ruleset\n{THEIRS}")
    daemon.start()
    assert all_theirs(daemon, theirs) and len(at(daemon, WANTED)) == 2
    assert foreign(daemon) == ["/services/taken"]


def test_the_service_is_served_once_they_are_gone(net: Topology, daemon: Daemon) -> None:
    daemon.put({"/services/taken/endpoints/b": net.backends[1].address4})
    daemon.host.run(["ipvsadm", "-D", "-t", WANTED])
    until(lambda: not foreign(daemon), 30, "the finding is gone", 0.1)
    answer = ask_tcp(net.client, "10.96.0.20", 80)
    assert isinstance(answer, Answer) and answer.backend == "b"


def test_cleanup_passes_over_them(daemon: Daemon, theirs: list[str]) -> None:
    left = [line for line in theirs if WANTED not in line]
    daemon.terminate()
    daemon.command("cleanup")
    assert all_theirs(daemon, left)
    ours = [line for line in ipvs(daemon.host) if "10.96.0.10" in line or "169.254" in line]
    assert ours == []
    assert "edgeproxy" not in daemon.host.run(["nft", "list", "tables"]).stdout
