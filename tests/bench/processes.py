"""CPU time and memory of a process, from /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

_QUIET = 0.5
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


def wait_quiet(pid: int, cap: float) -> None:
    """Wait until a process and its children have used no CPU for a while; gives up after `cap` seconds."""
    end = time.monotonic() + cap
    before = -1.0
    while (now := sum(map(cpu_seconds, [pid, *_children(pid)]))) != before and time.monotonic() < end:
        before = now
        time.sleep(_QUIET)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
