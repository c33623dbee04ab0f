"""Kernel settings below `/proc/sys`: read first, written only when different and permitted.

`net.*` settings belong to the network namespace of the calling thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

ROOT = Path("/proc/sys")


class Sysctl(msgspec.Struct, frozen=True, order=True, gc=False):
    """A setting as it should be.

    name: in the notation of sysctl(8) and sysctl.d(5): `net.ipv4.ip_forward`. Where a part holds a dot
        itself, slashes separate: `net/ipv4/conf/eth0.100/rp_filter`; a slash inside a dotted name stands for
        a dot (`net.ipv4.conf.eth0/100.rp_filter`).
    wanted: the value; white space between several numbers does not matter.
    """

    name: str
    wanted: str


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one setting.

    found: the value before, None where the kernel has no such setting (module not loaded) or hides it.
    written: whether it was changed.
    error: why it is not as wanted, "" if it is.
    """

    name: str
    wanted: str
    found: str | None
    written: bool = False
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether the kernel holds the wanted value now."""
        return not self.error

    def __str__(self) -> str:
        if self.error:
            return f"{path(self.name)} is {self.found or 'absent'}, wanted {self.wanted}: {self.error}"
        return f"{path(self.name)} is {self.wanted}" + (f", was {self.found}" if self.written else "")


def path(name: str) -> Path:
    """The file of a setting.

    As in sysctl.d(5), the first separator tells which notation is meant.

    Raises:
        ValueError: the name is empty or leads out of `/proc/sys`.
    """
    dot, slash = name.find("."), name.find("/")
    if dot >= 0 and (slash < 0 or dot < slash):
        name = name.translate({ord("."): "/", ord("/"): "."})
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name!r} is not the name of a kernel setting such as net.ipv4.ip_forward")
    return ROOT.joinpath(*parts)


def read(name: str) -> str | None:
    """The value of a setting, None where the kernel has none of that name.

    Raises:
        OSError: it is there and may not be read.
    """
    try:
        return path(name).read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def apply(wanted: Sequence[Sysctl]) -> tuple[Outcome, ...]:
    """Make the settings as wanted, as far as permitted; one outcome each, in order. Never raises OSError."""
    return tuple(_apply(setting) for setting in wanted)


def check(wanted: Sequence[Sysctl]) -> tuple[Outcome, ...]:
    """Like :func:`apply`, but writes nothing."""
    return tuple(_look(setting) for setting in wanted)


def _look(setting: Sysctl) -> Outcome:
    name, value = setting.name, setting.wanted
    try:
        found = read(name)
    except OSError as error:
        return Outcome(name, value, None, error=f"cannot be read ({error.strerror})")
    if found is None:
        return Outcome(
            name, value, None, error="this kernel has no such setting, or its module is not loaded"
        )
    return Outcome(name, value, found, error="" if found.split() == value.split() else "it differs")


def _apply(setting: Sysctl) -> Outcome:
    seen = _look(setting)
    if seen.good or seen.found is None:
        return seen
    try:
        path(setting.name).write_text(setting.wanted + "\n", encoding="ascii")
        now = read(setting.name)
    except OSError as error:
        why = f"cannot be written ({error.strerror}); set it in /etc/sysctl.d and run systemd-sysctl"
        return msgspec.structs.replace(seen, error=why)
    taken = now is not None and now.split() == setting.wanted.split()
    return msgspec.structs.replace(seen, written=True, error="" if taken else f"the kernel made {now} of it")
