"""The state directory: one holder at a time, marks that survive, files that are never half written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeproxy.state import Lock, Locked, StateError, cordon, is_cordoned, uncordon, write_atomically


def test_a_second_daemon_is_refused_and_told_who_holds_the_directory(tmp_path: Path) -> None:
    with (
        Lock.acquire(tmp_path),
        pytest.raises(Locked, match=rf"held by .*daemon \(pid {os.getpid()}\)") as caught,
    ):
        Lock.acquire(tmp_path)

    assert caught.value.pid == os.getpid()
    Lock.acquire(tmp_path).release()


def test_a_crash_leaves_no_lock_behind(tmp_path: Path) -> None:
    program = (
        "import os, pathlib; from edgeproxy.state import Lock;"
        f"lock = Lock.acquire(pathlib.Path({str(tmp_path)!r})); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9

    assert int((tmp_path / "lock").read_text()) > 0
    Lock.acquire(tmp_path).release()


def test_the_directory_is_made_but_not_its_parents(tmp_path: Path) -> None:
    Lock.acquire(tmp_path / "state").release()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o750

    with pytest.raises(StateError, match=r"cannot be used: No such file"):
        Lock.acquire(tmp_path / "no" / "state")


def test_the_cordon_mark(tmp_path: Path) -> None:
    assert not is_cordoned(tmp_path)
    assert cordon(tmp_path)
    assert not cordon(tmp_path)
    assert is_cordoned(tmp_path)
    assert uncordon(tmp_path)
    assert not uncordon(tmp_path)
    assert not is_cordoned(tmp_path)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "owned"
    write_atomically(path, b"old")

    def power_loss(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", power_loss)
        with pytest.raises(StateError, match="Input/output error"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"

    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["owned"]
