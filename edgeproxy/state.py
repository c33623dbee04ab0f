"""The state directory of one host: who holds it, and what must survive a restart.

    StateError              the directory cannot be used (missing, not ours)
      Locked                another daemon holds it

Files in it: `lock` (flock; holds the daemon's pid), `cordoned` (present = host is draining),
`control.sock` (see control.py), and what other modules put there through :func:`write_atomically`.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

LOCK = "lock"
CORDONED = "cordoned"
CONTROL_SOCKET = "control.sock"


class StateError(Exception):
    """The state directory cannot be used as it is; the message says what to do."""


class Locked(StateError):
    """Another process holds the directory. pid: its process id, 0 if it is only just starting."""

    def __init__(self, directory: Path, pid: int) -> None:
        super().__init__(
            f"{directory} is held by a running edgeproxy daemon"
            + (f" (pid {pid})" if pid else "")
            + ": stop it first, or use another [state] dir"
        )
        self.pid = pid


class Lock:
    """Exclusive hold of a state directory, until :meth:`release` or the end of the process.

    The kernel drops the lock with the process, so a crash leaves none behind. The file stays:
    removing it would let two processes lock two different files of one name.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, directory: Path) -> Lock:
        """Take the directory; it is created if its parent exists.

        Raises:
            Locked: another process holds it.
            StateError: the directory cannot be made or written.
        """
        try:
            directory.mkdir(mode=0o750, exist_ok=True)
            descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            _give_to_owner(descriptor, directory)
        except OSError as error:
            raise StateError(_unusable(directory, error)) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).strip()
            os.close(descriptor)
            raise Locked(directory, int(pid) if pid.isdigit() else 0) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Give the directory up."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_cordoned(directory: Path) -> bool:
    """Whether the host is marked as draining."""
    return (directory / CORDONED).exists()


def cordon(directory: Path) -> bool:
    """Mark the host as draining, for good until :func:`uncordon`. False if it was already.

    Raises:
        StateError: the directory cannot be written.
    """
    if is_cordoned(directory):
        return False
    write_atomically(directory / CORDONED, b"This host is draining; `edgeproxy uncordon` ends it.\n")
    return True


def uncordon(directory: Path) -> bool:
    """Take the mark away. False if there was none.

    Raises:
        StateError: the directory cannot be written.
    """
    try:
        (directory / CORDONED).unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StateError(_unusable(directory, error)) from None
    _sync_directory(directory)
    return True


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a crash or power loss leaves the old content or the new, never less.

    Raises:
        StateError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        with open(descriptor, "wb") as file:
            _give_to_owner(descriptor, path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StateError(_unusable(path.parent, error)) from None
    _sync_directory(path.parent)


def _give_to_owner(descriptor: int, directory: Path) -> None:
    """What root's commands make must stay usable for the daemon's own user."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(directory: Path, error: OSError) -> str:
    hint = "; run as root or as the daemon's user" if isinstance(error, PermissionError) else ""
    return f"[state] dir {directory} cannot be used: {error.strerror}{hint}"
