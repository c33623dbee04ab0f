"""The operator's commands beside a running, a stopped and a busy daemon."""

from __future__ import annotations

import json

from tests.systemd.proxyhost import CONFIGURATION, MORE, UNIT, ProxyHost

FOREIGN = """
nft add table inet other
nft add set inet other addresses4 '{ type ipv4_addr; }'
nft add table ip edgeproxy
ipvsadm -A -t 10.96.0.10:9000 -s rr
ipvsadm -a -t 10.96.0.10:9000 -r 10.1.1.2:80 -m
ip route add local 10.97.0.0/16 dev lo
"""
FOREIGN_GOES = """
nft delete table inet other
nft delete table ip edgeproxy
ipvsadm -D -t 10.96.0.10:9000
ip route del local 10.97.0.0/16 dev lo
"""


def test_status(host: ProxyHost) -> None:
    shown = host.edgeproxy("status")
    assert shown.code == 0, shown.stderr
    assert str(MORE + 2) in shown.stdout
    told = json.loads(host.edgeproxy("status", "--json").stdout)
    assert told["ready"] is True
    assert told["services"] == MORE + 1
    assert told["endpoints"] == 2
    assert told["findings"] == []
    assert told["pid"] == int(host.show()["MainPID"])
    assert told["kernel"]["virtual_servers"] == MORE + 2


def test_check_of_file_and_store(host: ProxyHost) -> None:
    good = host.edgeproxy("check")
    assert (good.code, good.stderr.strip()) == (0, f"{CONFIGURATION} is good")
    store = host.edgeproxy("check", "--store")
    assert store.code == 0, store.stdout
    assert f"{MORE + 1} services, 2 endpoints, 0 findings" in store.stderr
    host.vm.put("/root/records.json", b'{"web": {"clusterIP": "10.96.0.10", "ports": [{"port": 0}]}}')
    bad = host.edgeproxy("check", "/root/records.json")
    assert bad.code == 4
    assert "ports[0].port" in bad.stdout


def test_cordon_outlives_the_daemon(host: ProxyHost) -> None:
    assert (host.code("/healthz"), host.code("/livez")) == (200, 200)
    assert host.edgeproxy("cordon").code == 0
    assert (host.code("/healthz"), host.code("/livez")) == (503, 200)
    host.restart()
    assert (host.code("/healthz"), host.code("/livez")) == (503, 200)
    assert host.unserved() == []
    assert host.edgeproxy("uncordon").code == 0
    assert (host.code("/healthz"), host.code("/livez")) == (200, 200)


def test_cleanup_removes_all_that_is_ours_and_nothing_else(host: ProxyHost) -> None:
    refused = host.edgeproxy("cleanup")
    assert refused.code == 1
    assert f"pid {host.show()['MainPID']}" in refused.stderr
    assert host.unserved() == []

    host.sh(FOREIGN)
    host.run("systemctl", "stop", UNIT)
    done = host.edgeproxy("cleanup")
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("removed virtual server ") for line in lines) == MORE + 2
    assert "removed table inet edgeproxy" in lines
    assert "removed table arp edgeproxy" in lines
    assert "removed route local 10.96.0.0/16" in lines
    left = host.kernel()
    assert "edgeproxy" not in left.replace("table ip edgeproxy", "")
    assert [line for line in left.splitlines() if line.startswith("-")] == [
        "-A -t 10.96.0.10:9000 -s rr",
        "-a -t 10.96.0.10:9000 -r 10.1.1.2:80 -m -w 1",
    ]
    assert "10.96.0.0/16" not in left
    assert "edgeproxy" not in host.sh("iptables-save; ip6tables-save")
    for kept in ("table inet other", "table ip edgeproxy", "set addresses4", "local 10.97.0.0/16"):
        assert kept in left
    again = host.edgeproxy("cleanup")
    assert (again.code, again.stdout, again.stderr) == (0, "", "nothing to remove\n")
    assert host.kernel() == left

    host.must(host.vm.run(["systemctl", "start", UNIT]))
    host.sh(FOREIGN_GOES)
    assert host.unserved() == []
