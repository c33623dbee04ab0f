"""Tests on a kernel with ip_vs, with machines in network namespaces: see tests/lab/topology.py."""

from __future__ import annotations

import pytest

from tests.lab.kernel import has_ip_vs


@pytest.fixture(autouse=True, scope="session")
def ip_vs() -> None:
    """Loads ip_vs; without it, or without root, nothing here can run."""
    if not has_ip_vs():
        pytest.skip(
            "needs root and a kernel with ip_vs: run it in the lab, `make lab-test ARGS=tests/kernel`"
        )
