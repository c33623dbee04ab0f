"""What the readers of service and endpoint records share: collecting problems, judging values."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import TypeVar

from edgeproxy.address import Address, is_ipv4, special_kind
from edgeproxy.record_json import shown
from edgeproxy.records import Problem, Severity

MAX_PORT = 65535
MAX_LISTED = 50

Choice = TypeVar("Choice", bound=enum.Enum)

_MAPPED = bytes(10) + b"\xff\xff"
# Most addresses are told from special ones by their first byte, at a tenth of the cost.
_SUSPECT4 = frozenset((0, 127, 169, *range(224, 256)))
_SUSPECT6 = frozenset((0, 0xFE, 0xFF))


class Problems:
    """Problems of one value, beginning with those of its shape.

    A field that already has an error because of its type gets no second one for its meaning, and
    warnings about meaning are left out then: they may only be consequences.
    """

    def __init__(self, shape: list[Problem]) -> None:
        self._shape = shape
        self._wrong = [problem.path for problem in shape if problem.severity is Severity.ERROR]
        self._meaning: list[Problem] = []
        self.fatal = bool(self._wrong)

    def error(self, path: str, message: str) -> None:
        """Note what makes the record unusable."""
        self.fatal = True
        if not any(wrong == path or wrong.startswith((f"{path}[", f"{path}.")) for wrong in self._wrong):
            self._meaning.append(Problem(path, message))

    def warn(self, path: str, message: str) -> None:
        """Note what is odd but does no harm."""
        if not self._wrong:
            self._meaning.append(Problem(path, message, Severity.WARNING))

    def within(self, path: str, number: int, low: int, high: int) -> int:
        """The number, with an error noted if it is out of range."""
        if not low <= number <= high:
            self.error(path, f"expected a number from {low} to {high}, found {shown(number)}")
        return number

    def choice(self, path: str, text: str | None, choices: dict[str, Choice], default: Choice) -> Choice:
        """The member a text names, with an error that lists the accepted texts if it names none."""
        if text is None:
            return default
        if text not in choices:
            accepted = ", ".join(name for name in choices)
            nearly = [name for name in choices if name.lower() == text.lower()]
            advice = f": did you mean {nearly[0]}?" if nearly else ""
            self.error(path, f"expected one of {accepted}; found {shown(text)}{advice}")
            return default
        return choices[text]

    def shape_warning(self, path: str) -> Problem | None:
        """The warning the shape got at a path, if any."""
        return next((p for p in self._shape if p.path == path and p.severity is Severity.WARNING), None)

    def listed(self) -> tuple[Problem, ...]:
        """All problems, errors first; beyond fifty only their number is told."""
        if not self._shape and not self._meaning:
            return ()
        found = sorted(self._shape + self._meaning, key=lambda problem: problem.severity is Severity.WARNING)
        if len(found) > MAX_LISTED:
            rest = f"and {len(found) - MAX_LISTED} problems more"
            severity = Severity.ERROR if self.fatal else Severity.WARNING
            found[MAX_LISTED:] = [Problem("", rest, severity)]
        return tuple(found)


def special(address: Address) -> str | None:
    """Why an address can't be a service address or a backend (`loopback`, ...), or None."""
    if address[0] not in (_SUSPECT4 if is_ipv4(address) else _SUSPECT6):
        return None
    if address.startswith(_MAPPED):
        return "IPv4-mapped: write it as IPv4"
    return special_kind(address)


def changed_at(text: str, problems: Problems) -> float:
    """The seconds since the epoch of an RFC 3339 time, with a zone; 0.0 and a warning for anything else."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None or len(text) < len("2006-01-02T15:04:05Z"):
        message = (
            f"expected a time such as 2006-01-02T15:04:05Z, found {shown(text)}; latency counts from receipt"
        )
        problems.warn("changedAt", message)
        return 0.0
    return time.timestamp()
