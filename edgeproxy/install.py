"""`edgeproxy install-units`: the unit and its files, for the installation this program is part of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

PACKAGED = Path(__file__).parent / "units"
SOURCE_TREE = Path(__file__).parent.parent / "contrib" / "systemd"

# What the unit in contrib/ starts, as a distribution's package would install it.
PACKAGED_COMMAND = "ExecStart=/usr/bin/edgeproxy "
CONFIGURATION = "etc/edgeproxy/edgeproxy.toml"
TARGETS = {
    "edgeproxy.service": "etc/systemd/system/edgeproxy.service",
    "modules-load.conf": "etc/modules-load.d/edgeproxy.conf",
    # The unit names this one.
    "sysctl.conf": "etc/sysctl.d/60-edgeproxy.conf",
    "sysusers.conf": "etc/sysusers.d/edgeproxy.conf",
    "edgeproxy.toml": CONFIGURATION,
}
# ProtectHome= of the unit hides these; PrivateTmp= hides the last two.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")


class InstallError(Exception):
    """A file cannot be written or a command failed; the message names it."""


class Installed(msgspec.Struct, frozen=True):
    """A file: its path and whether it was `written`, `unchanged` or `kept` (a configuration of yours)."""

    path: str
    outcome: str


def install_units(root: Path, command: str) -> Iterator[Installed]:
    """Write every file below `root`. Running it again writes only what differs.

    command: what ExecStart runs (see :func:`own_command`).

    Raises:
        InstallError: a file cannot be read or written.
    """
    source = PACKAGED if PACKAGED.is_dir() else SOURCE_TREE
    for name, target in TARGETS.items():
        path = root / target
        try:
            text = (source / name).read_text(encoding="utf-8")
            text = text.replace(PACKAGED_COMMAND, f"ExecStart={command} ")
            if target == CONFIGURATION and path.exists():
                yield Installed(str(path), "kept")
            elif path.exists() and path.read_text(encoding="utf-8") == text:
                yield Installed(str(path), "unchanged")
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                path.chmod(0o644)
                yield Installed(str(path), "written")
        except OSError as error:
            raise InstallError(f"{error.filename or path} cannot be installed: {error.strerror}") from None


def own_command() -> str:
    """The absolute path of this installation's `edgeproxy`, or its interpreter and `-m edgeproxy`."""
    invoked = shutil.which(sys.argv[0])
    if invoked and Path(invoked).name == "edgeproxy":
        return os.path.abspath(invoked)
    beside = Path(sys.executable).with_name("edgeproxy")
    return str(beside) if beside.exists() else f"{sys.executable} -m edgeproxy"


def unreachable_for_unit(command: str) -> str | None:
    """The directory that keeps the sandboxed unit from starting this command, if there is one."""
    program = command.partition(" ")[0]
    return next((hidden for hidden in HIDDEN if program.startswith(hidden + "/")), None)


def activate() -> Iterator[str]:
    """Make the user and let systemd read the unit; yields each command line before it runs.

    Raises:
        InstallError: a command failed.
    """
    for command in (["systemd-sysusers", "edgeproxy.conf"], ["systemctl", "daemon-reload"]):
        yield " ".join(command)
        try:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InstallError(f"{' '.join(command)} failed: {error}") from None


def systemd_runs_here() -> bool:
    """Whether this host was booted with systemd (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()
