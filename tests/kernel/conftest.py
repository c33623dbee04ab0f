"""Tests on a kernel with ip_vs, with machines in network namespaces: see tests/lab/topology.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.__main__ import kernel_is_capable


@pytest.fixture(autouse=True, scope="session")
def ip_vs() -> None:
    """Loads ip_vs; without it, or without root, nothing here can run."""
    if not kernel_is_capable():
        pytest.skip("needs root and a kernel with ip_vs: run it in the lab, `make lab-test ARGS=tests/kernel`")
    assert Path("/proc/sys/net/ipv4/vs").exists()
