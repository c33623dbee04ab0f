"""The file `kept` of the state directory: reads and writes what a daemon leaves for the next one."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from hashlib import blake2b
from pathlib import Path

from edgeproxy import __version__
from edgeproxy.collector import spare, uncollected
from edgeproxy.kept import Kept, decode, encode

log = logging.getLogger(__name__)

NAME = "kept"
KEEP_EVERY = 300.0
"""Seconds at least between two writes while the daemon runs: it is for a start after a crash."""


def build() -> str:
    """Names this very program: its version and the state of its files, so that no other one's values are read."""
    package = Path(__file__).parent
    seen = blake2b(digest_size=8)
    for path in sorted(package.rglob("*.py")):
        about = path.stat()
        seen.update(f"{path.relative_to(package)} {about.st_size} {about.st_mtime_ns}\n".encode())
    return f"{__version__} {seen.hexdigest()}"


class Keeper:
    """The file of one state directory; its lock must be held."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self._path = directory / NAME
        self._prefix = prefix
        self._revision = 0
        self._next = float("-inf")
        self._writing: asyncio.Task[None] | None = None
        self.build = build()

    def read(self) -> Kept | None:
        """What was kept, None where nothing can be used."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read (%s): beginning without it", self._path, error.strerror)
            return None
        with uncollected():
            kept = decode(content, self.build, self._prefix)
            spare()
        if kept is None:
            log.info(
                "%s is of another version, of another prefix or incomplete: beginning without it", self._path
            )
        return kept

    def write(self, kept: Kept) -> None:
        """Replace the file; a failure is told and leaves the old one.

        It needs no fsync: a file that a power loss cut short is not believed.
        """
        temporary = self._path.with_name(f"{NAME}.new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            with open(descriptor, "wb") as file:
                file.writelines(encode(kept))
            os.replace(temporary, self._path)
        except (OSError, OverflowError) as error:
            # Too large: an entry of the ledger has 32 bits for its revision where it is written down.
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("%s cannot be written (%s): the next start takes longer", self._path, reason)

    def due(self, revision: int) -> bool:
        """Whether the state at a revision should be written by now."""
        return revision != self._revision and time.monotonic() >= self._next and self._writing is None

    def write_beside(self, kept: Kept) -> None:
        """As :meth:`write`, in a thread: the event loop goes on, piece by piece."""
        self._revision, self._next = kept.catalog.revision, time.monotonic() + KEEP_EVERY
        self._writing = asyncio.create_task(asyncio.to_thread(self.write, kept), name="keep the state")
        self._writing.add_done_callback(self._written)

    async def written(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        if not task.cancelled() and task.exception() is not None:
            log.error("the state was not written to disk, which is a bug", exc_info=task.exception())
