"""Tests of edgeproxy under a real systemd: they drive a virtual machine from outside.

Every test module gets a machine of its own, in which the built wheel is installed as an operator
would install it; see `tests/lab/vm.py` for what can be done with it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.image import ROOT
from tests.lab.vm import LabVM

INSTALLED = "/opt/edgeproxy"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the current tree."""
    target = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(target), str(ROOT)]
    subprocess.run(argv, check=True)
    [built] = target.glob("edgeproxy-*.whl")
    return built


@pytest.fixture(scope="module")
def vm(wheel: Path) -> Iterator[LabVM]:
    """A booted machine with the wheel installed in /opt/edgeproxy, `edgeproxy` on the path, nothing started."""
    with LabVM() as machine:
        there = f"/root/{wheel.name}"
        machine.put(there, wheel.read_bytes())
        # The dependencies are in the image; pip checks that they satisfy the wheel.
        machine.run([f"{INSTALLED}/bin/pip", "install", "-q", "--no-index", there]).check()
        machine.run(["ln", "-s", f"{INSTALLED}/bin/edgeproxy", "/usr/local/bin/edgeproxy"]).check()
        yield machine
