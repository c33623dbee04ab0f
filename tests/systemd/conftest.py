"""Tests of edgeproxy under a real systemd: they drive a virtual machine from outside.

All of them share one machine, in which the built wheel is installed as an operator would install
it; each test leaves the daemon running, ready and uncordoned. The first one, in `test_first_start`,
starts it; the others find it started (in any order).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.image import ROOT
from tests.lab.vm import LabVM
from tests.systemd.proxyhost import COMMAND, CONFIGURATION, UNIT, ProxyHost

INSTALLED = "/opt/edgeproxy"
SHIPPED = "lib/python3.11/site-packages/edgeproxy/units/edgeproxy.toml"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the current tree."""
    target = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(target), str(ROOT)]
    subprocess.run(argv, check=True)
    [built] = target.glob("edgeproxy-*.whl")
    return built


@pytest.fixture(scope="session")
def bare(wheel: Path) -> Iterator[ProxyHost]:
    """A machine with network, etcd and records; the wheel is in /opt/edgeproxy, nothing of it started."""
    with LabVM() as vm:
        there = f"/root/{wheel.name}"
        vm.put(there, wheel.read_bytes())
        # The image's environment is made of the very versions that satisfy the project out here;
        # to have pip look at all of them again costs a minute of emulation.
        pip = [f"{INSTALLED}/bin/pip", "install", "-q", "--no-index", "--no-deps", "--force-reinstall", there]
        vm.run(pip).check()
        vm.run(["ln", "-sf", f"{INSTALLED}/bin/edgeproxy", COMMAND]).check()
        host = ProxyHost(vm)
        host.prepare()
        yield host


@pytest.fixture(scope="session")
def enabled(bare: ProxyHost) -> ProxyHost:
    """Units installed, service enabled and started."""
    bare.must(bare.edgeproxy("install-units"))
    bare.must(bare.vm.run(["systemctl", "enable", "--now", UNIT]))
    return bare


@pytest.fixture
def host(enabled: ProxyHost) -> ProxyHost:
    """The machine with the daemon running; a test that failed half-way does not fail the next."""
    if not enabled.is_active():
        enabled.run("cp", f"{INSTALLED}/{SHIPPED}", CONFIGURATION)
        enabled.run("systemctl", "start", "etcd")
        enabled.restart()
    return enabled
