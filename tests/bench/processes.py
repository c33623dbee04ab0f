"""CPU time and memory of a process, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, its waited-for children included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    # proc(5): after the name come state (3), ...; utime, stime, cutime, cstime are fields 14 to 17.
    return sum(map(int, fields[11:15])) / _TICKS


def resident_mib(pid: int, field: str = "VmRSS") -> float:
    """Resident memory now; with `VmHWM` the most it ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"/proc/{pid}/status has no {field}")
