"""Accept rules of ours in the filter table of iptables, for hosts whose other software drops by default.

Only with `[proxy] accept_in = "iptables"`. Each rule carries the comment `edgeproxy`, which is how
they are found again: ours are added at the top, checked at every audit and removed by `cleanup`.

Packets that open a flow we serve carry the mark bit (`ruleset`). They are accepted in INPUT, where they
arrive before IPVS takes them, and in OUTPUT, where IPVS sends them on. All that follows, replies
through FORWARD included, belongs to an established flow.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

COMMENT = ("-m", "comment", "--comment", "edgeproxy")
COMMANDS = ("iptables", "ip6tables")
CHAINS = ("INPUT", "FORWARD", "OUTPUT")
SECONDS = 30.0


class IptablesError(Exception):
    """There is no iptables, or it refused."""


def rules(mark_bit: int) -> Iterator[tuple[str, ...]]:
    """The rules, `CHAIN match ... -j ACCEPT`, in the order they are added."""
    mark = f"{1 << mark_bit:#x}"
    for chain in ("INPUT", "OUTPUT"):
        yield (chain, "-m", "mark", "--mark", f"{mark}/{mark}", *COMMENT, "-j", "ACCEPT")
    for chain in CHAINS:
        yield (chain, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", *COMMENT, "-j", "ACCEPT")


def ensure(mark_bit: int) -> int:
    """Add the rules that are missing; how many were.

    Raises:
        IptablesError: as the class says.
    """
    added = 0
    for command in COMMANDS:
        for chain, *rule in rules(mark_bit):
            if _run(command, "-C", chain, *rule) != 0:
                _must(command, "-I", chain, "1", *rule)
                added += 1
    return added


def remove(mark_bit: int) -> int:
    """Remove the rules that are there; how many were. Without iptables there are none."""
    removed = 0
    for command in COMMANDS:
        for chain, *rule in rules(mark_bit):
            try:
                while _run(command, "-C", chain, *rule) == 0:
                    _must(command, "-D", chain, *rule)
                    removed += 1
            except IptablesError:
                break
    return removed


def _run(command: str, *words: str) -> int:
    return _call(command, *words).returncode


def _must(command: str, *words: str) -> None:
    done = _call(command, *words)
    if done.returncode:
        raise IptablesError(f"{command} {' '.join(words)}: {done.stderr.strip()}")


def _call(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        # -w: others may hold the lock of iptables-legacy for a moment.
        return subprocess.run(
            (command, "-w", "5", *words), capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IptablesError(
            f'{command} cannot be run ({error}): [proxy] accept_in = "iptables" needs it'
        ) from None
