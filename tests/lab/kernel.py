"""What the kernel that runs here can do."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path


def has_ip_vs() -> bool:
    """Whether ip_vs is there, or can be loaded, and we are root and may use it."""
    if os.geteuid() != 0:
        return False
    if Path("/proc/sys/net/ipv4/vs").exists():
        return True
    modprobe = shutil.which("modprobe") or "/sbin/modprobe"
    with contextlib.suppress(FileNotFoundError):
        subprocess.run([modprobe, "-q", "ip_vs"], stderr=subprocess.DEVNULL, check=False)
    return Path("/proc/sys/net/ipv4/vs").exists()
