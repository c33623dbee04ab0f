"""Which virtual servers are ours, told by a file: `owned` in the state directory.

The register in our nft table (`frontends*`) says it first; but `systemctl restart nftables` or
`nft flush ruleset` empties every table while IPVS keeps its servers, and a daemon that starts after
that must still know its own. The file is valid for one boot and one network namespace, because
IPVS lives exactly that long. It is a log: a line is added before a virtual server is made and
after one is removed; :meth:`OwnershipLog.rewrite` shortens it. It needs no fsync: what a power loss
takes from it, the reboot takes from the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from edgeproxy.address import parse, text
from edgeproxy.model import Finding, Frontend, Protocol, Reason
from edgeproxy.state import StateError, write_atomically

NAME = "owned"
_NAMES = {protocol: protocol.name.lower() for protocol in Protocol}


def scope() -> str:
    """The boot and the network namespace this process runs in: the first line of the file."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"boot {boot} netns {os.stat('/proc/self/ns/net').st_ino}"


def line(frontend: Frontend) -> str:
    """`tcp 10.96.0.10 8000`."""
    return f"{_NAMES[frontend.protocol]} {text(frontend.address)} {frontend.port}"


def fold(content: str, scope: str) -> frozenset[Frontend]:
    """The frontends a file says are ours; none if it is of another scope.

    A last line cut short by a crash, or any other that cannot be read, is passed over: the
    operation it announced had not begun.
    """
    whole, _, _ = content.rpartition("\n")
    head, *lines = whole.split("\n")
    owned: set[Frontend] = set()
    if head != scope:
        return frozenset()
    for entry in lines:
        match entry.split(" "):
            case ["+" | "-" as sign, protocol, address, port] if port.isdigit():
                try:
                    frontend = Frontend(parse(address), Protocol[protocol.upper()], int(port))
                except (KeyError, ValueError):
                    continue
                (owned.add if sign == "+" else owned.discard)(frontend)
            case _:
                continue
    return frozenset(owned)


class OwnershipLog:
    """The file of one state directory; its lock must be held.

    It is the second memory, after the register: a file that cannot be read or written (a full disk)
    is a trouble to be told, never a reason not to change the kernel.
    """

    def __init__(self, directory: Path, scope: str) -> None:
        self._path = directory / NAME
        self._scope = scope
        self._trouble = ""

    def read(self) -> frozenset[Frontend]:
        """The frontends that are ours; none without a file or after a reboot."""
        try:
            return fold(self._path.read_text(encoding="utf-8"), self._scope)
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            self._fail("read", error)
            return frozenset()

    def rewrite(self, owned: Iterable[Frontend]) -> None:
        """Begin the file anew with these."""
        lines = [self._scope, *sorted(f"+ {line(frontend)}" for frontend in owned)]
        try:
            write_atomically(self._path, ("\n".join(lines) + "\n").encode())
        except StateError as error:
            self._fail("written", error)
        else:
            self._trouble = ""

    def add(self, frontends: Iterable[Frontend]) -> None:
        """Say that these will be made."""
        self._append("+", frontends)

    def remove(self, frontends: Iterable[Frontend]) -> None:
        """Say that these are gone."""
        self._append("-", frontends)

    def findings(self) -> tuple[Finding, ...]:
        """What stands in the way of the file."""
        return (Finding("", 0, "[state] dir", Reason.STATE, self._trouble),) if self._trouble else ()

    @property
    def incomplete(self) -> bool:
        """Whether something could not be written: begin anew as soon as that is possible."""
        return bool(self._trouble)

    def _append(self, sign: str, frontends: Iterable[Frontend]) -> None:
        lines = "".join(f"{sign} {line(frontend)}\n" for frontend in frontends)
        if not lines:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            self._fail("written", error)

    def _fail(self, done: str, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._trouble = (
            f"{self._path} cannot be {done} ({reason}): if our nft tables are flushed while no daemon runs, "
            "virtual servers of ours may be taken for another program's; make room or mend the directory"
        )
