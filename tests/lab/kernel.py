"""What the kernel that runs here can do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

LOCALITY_SCHEDULERS = ("ip_vs_lblc", "ip_vs_lblcr")
"""Modules that must not be loaded by IPVS itself. It holds its lock meanwhile, they wait for every removal of a
network namespace to end (`register_pernet_subsys`), and that waits for the lock of IPVS (`ip_vs_dst_event`): all
three hang for minutes (seen on Linux 6.1)."""


def has_ip_vs() -> bool:
    """Whether ip_vs is there, or can be loaded, and we are root and may use it."""
    if os.geteuid() != 0:
        return False
    load_ip_vs()
    return Path("/proc/sys/net/ipv4/vs").exists()


def load_ip_vs() -> None:
    """Load ip_vs, where it is a module, with what it must not load by itself."""
    modprobe = shutil.which("modprobe") or "/sbin/modprobe"
    if Path(modprobe).exists():
        argv = [modprobe, "-qa", "ip_vs", *LOCALITY_SCHEDULERS]
        subprocess.run(argv, stderr=subprocess.DEVNULL, check=False)
