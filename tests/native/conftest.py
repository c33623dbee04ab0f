"""Tests on the running kernel, each in a network namespace of its own: root, but no ip_vs needed."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator

import pytest

_NEW_NETWORK = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, doing: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def sh(*words: str, script: str | None = None) -> str:
    """Run a command in the test's namespace; its output."""
    done = subprocess.run(words, input=script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def netns() -> Iterator[None]:
    """An empty network namespace for this thread and its children, `lo` up."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a network namespace")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_LIBC.unshare(_NEW_NETWORK), "unshare")
        sh("ip", "link", "set", "lo", "up")
        yield
    finally:
        _checked(_LIBC.setns(home, _NEW_NETWORK), "setns")
        os.close(home)
