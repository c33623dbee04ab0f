"""systemd's side of the daemon: readiness, watchdog, journal. Outside systemd all of it does nothing.

The variables read here (NOTIFY_SOCKET by the library, WATCHDOG_USEC, WATCHDOG_PID, JOURNAL_STREAM) are
systemd's protocol, not configuration: sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from systemd import daemon, journal  # type: ignore[import-untyped]  # ships no stubs

IDENTIFIER = "edgeproxy"
FORMAT = "%(asctime)s %(levelname)s %(message)s"
# What JournalHandler would also send (LEVELNO, MSECS, RELATIVECREATED, ...) only fills the journal.
KEPT_FIELDS = frozenset(
    {"PRIORITY", "LOGGER", "CODE_FILE", "CODE_LINE", "CODE_FUNC", "SYSLOG_IDENTIFIER", "EXCEPTION_TEXT"}
)
OWN_FIELDS = "EDGEPROXY_"
# How many loop turns fit in a watchdog interval; systemd advises to pet at half of it.
TURNS_PER_INTERVAL = 4


def ready(status: str) -> None:
    """Start (or reload) is complete."""
    daemon.notify(f"READY=1\nSTATUS={status}")


def status(text: str) -> None:
    """One line for `systemctl status`."""
    daemon.notify(f"STATUS={text}")


def reloading() -> None:
    """A reload has begun; :func:`ready` ends it."""
    daemon.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The daemon ends on purpose."""
    daemon.notify("STOPPING=1\nSTATUS=stopping; traffic goes on")


def _pet() -> None:
    daemon.notify("WATCHDOG=1")


class Watchdog:
    """Tells systemd that the daemon's loop makes progress; a loop that hangs is restarted.

    There is no feeding task: a task would go on feeding while the work hangs. The loop calls
    :meth:`progress` on every turn (and in long work between its steps); a message goes out only when
    one is due. The loop must turn at least every `turn` seconds, also when there is nothing to do.
    """

    def __init__(
        self,
        interval: float | None,
        pet: Callable[[], None] = _pet,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`interval`: seconds after which systemd acts; None = no watchdog."""
        self._period = interval / TURNS_PER_INTERVAL if interval else None
        self._pet = pet
        self._clock = clock
        self._due = clock()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Watchdog:
        """The watchdog that systemd asks of this process."""
        microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        if not microseconds.isdigit() or (pid and pid != str(os.getpid())):
            return cls(None)
        return cls(int(microseconds) / 1e6 or None)

    @property
    def turn(self) -> float | None:
        """Seconds the loop may wait at most before its next :meth:`progress`; None = as long as it likes."""
        return self._period

    def progress(self) -> None:
        """The loop has come round."""
        if self._period is None:
            return
        now = self._clock()
        if now >= self._due:
            self._due = now + self._period
            self._pet()


def fields(*, service: str = "", key: str = "", revision: int = 0) -> dict[str, str]:
    """Journal fields for `extra=` of a log call; find them with `journalctl EDGEPROXY_SERVICE=web`."""
    found = {"EDGEPROXY_SERVICE": service, "EDGEPROXY_KEY": key}
    if revision:
        found["EDGEPROXY_REVISION"] = str(revision)
    return {name: value for name, value in found.items() if value}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the journal fields in lower case."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name.startswith(OWN_FIELDS):
                line[name.removeprefix(OWN_FIELDS).lower()] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(level: int = logging.INFO, *, as_json: bool = False) -> None:
    """Log to the journal with fields if stderr is the journal, else as lines to stderr.

    as_json: JSON lines to stderr, whatever it is.
    """
    handler: logging.Handler
    if _stderr_is_journal(os.environ) and not as_json:
        handler = journal.JournalHandler(sender_function=_send, SYSLOG_IDENTIFIER=IDENTIFIER)
        # basicConfig would put level and logger before the text; the journal has fields for them.
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _send(text: str, /, **found: object) -> None:
    kept = {
        name: value for name, value in found.items() if name in KEPT_FIELDS or name.startswith(OWN_FIELDS)
    }
    journal.send(text, **kept)


def _stderr_is_journal(environment: Mapping[str, str]) -> bool:
    """Whether JOURNAL_STREAM names the very file stderr is (a child may have redirected it)."""
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
