"""What an operator does: install, enable, reboot. The service answers again without help."""

from __future__ import annotations

import json

import pytest

from tests.lab.vm import LabVM
from tests.lab.wait import until

SERVICE = '{"clusterIP":"10.96.0.10","ports":[{"port":8000,"targetPort":80,"nodePort":36200}]}'
ENDPOINTS = {"a": '{"address":"10.1.1.2"}', "b": "10.1.2.2:80"}

# The backends of the walk-through, each in a network namespace; they come back after a reboot, too.
BACKEND_SCRIPT = """#!/bin/sh -e
ip netns add "$1"
ip link add "to-$1" type veth peer name eth0 netns "$1"
ip addr add "10.1.$2.1/24" dev "to-$1"
ip link set "to-$1" up
ip -n "$1" addr add "10.1.$2.2/24" dev eth0
ip -n "$1" link set lo up
ip -n "$1" link set eth0 up
ip -n "$1" route add default via "10.1.$2.1"
exec ip netns exec "$1" socat TCP-LISTEN:80,fork,reuseaddr SYSTEM:'echo HTTP/1.0 200 OK; echo; echo '"$1"
"""
BACKEND_UNIT = """[Service]
ExecStart=/usr/local/sbin/backend {name} {number}

[Install]
WantedBy=multi-user.target
"""

BACKENDS = [("a", 1), ("b", 2)]


@pytest.fixture(scope="module")
def prepared(vm: LabVM) -> LabVM:
    """The machine with etcd and two backends as services of its own, all enabled."""
    vm.put("/usr/local/sbin/backend", BACKEND_SCRIPT.encode(), 0o755)
    units = ["etcd.service"]
    for name, number in BACKENDS:
        units.append(f"backend-{name}.service")
        unit = BACKEND_UNIT.format(name=name, number=number)
        vm.put(f"/etc/systemd/system/{units[-1]}", unit.encode())
    vm.run(["systemctl", "daemon-reload"]).check()
    vm.run(["systemctl", "enable", "--now", *units]).check()
    vm.run(["etcdctl", "put", "/services/web", SERVICE]).check()
    for name, record in ENDPOINTS.items():
        vm.run(["etcdctl", "put", f"/services/web/endpoints/{name}", record]).check()
    return vm


def answers(vm: LabVM, url: str) -> set[str]:
    """Who answered four requests; empty strings stand for requests that failed."""
    script = 'for i in 1 2 3 4; do curl -sS --max-time 5 "$1" || echo; done'
    return set(vm.run(["sh", "-c", script, "ask", url]).stdout.splitlines())


def serves(vm: LabVM) -> bool:
    return all(
        answers(vm, url) == {"a", "b"} for url in ("http://10.96.0.10:8000/", "http://10.1.1.1:36200/")
    )


def properties(vm: LabVM) -> dict[str, str]:
    names = "ActiveState,SubState,StatusText,User,NRestarts"
    text = vm.run(["systemctl", "show", "edgeproxy", "-p", names]).check().stdout
    return dict(line.split("=", 1) for line in text.splitlines())


def test_install_enable_reboot(prepared: LabVM) -> None:
    vm = prepared
    vm.run(["edgeproxy", "install-units"]).check()
    vm.run(["systemctl", "daemon-reload"]).check()
    started = vm.run(["systemctl", "enable", "--now", "edgeproxy"])
    assert started.code == 0, started.stderr + vm.run(["journalctl", "-u", "edgeproxy"]).stdout
    # Type=notify: the command returned after the first complete apply.
    assert serves(vm)
    assert properties(vm)["User"] == "edgeproxy"

    vm.reboot()
    until(lambda: properties(vm)["ActiveState"] == "active", 180, "edgeproxy is active after the reboot")
    until(lambda: serves(vm), 60, "both backends answer after the reboot")
    status = json.loads(vm.run(["edgeproxy", "status", "--json"]).check().stdout)
    assert status["ready"] is True
    assert status["findings"] == []


def test_security_score_is_at_most_2(prepared: LabVM) -> None:
    result = prepared.run(["systemd-analyze", "security", "--threshold=20", "--no-pager", "edgeproxy"])
    assert result.code == 0, result.stdout


def test_killed_daemon_comes_back_while_traffic_goes_on(prepared: LabVM) -> None:
    vm = prepared
    before = int(properties(vm)["NRestarts"])
    vm.run(["systemctl", "kill", "--signal=KILL", "edgeproxy"]).check()
    assert serves(vm)
    until(lambda: int(properties(vm)["NRestarts"]) > before, 60, "systemd restarts the daemon")
    until(lambda: properties(vm)["ActiveState"] == "active", 120, "edgeproxy is active again")
    assert serves(vm)
