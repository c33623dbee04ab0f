"""The frame is loaded when it differs, and only then."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgeproxy.frame import NAME, FrameKeeper
from edgeproxy.kernel.ruleset import Frame
from edgeproxy.surroundings import survey
from tests.fake_kernel import CrashError, FakeKernel, FakeNft
from tests.unit.site import FACTS, SETTINGS

FRAME = survey(SETTINGS, FACTS).frame


def ensure(kernel: FakeKernel, directory: Path, frame: Frame = FRAME) -> bool:
    """As a daemon that has just started."""
    return FrameKeeper(FakeNft(kernel), directory).ensure(frame)


def test_once(tmp_path: Path) -> None:
    kernel = FakeKernel()
    keeper = FrameKeeper(FakeNft(kernel), tmp_path)
    assert keeper.ensure(FRAME)
    assert not keeper.ensure(FRAME)
    assert not ensure(kernel, tmp_path), "nor after a restart"


def test_again_when_settings_or_kernel_differ(tmp_path: Path) -> None:
    kernel = FakeKernel()
    ensure(kernel, tmp_path)
    assert ensure(kernel, tmp_path, msgspec.structs.replace(FRAME, mark_bit=15))
    assert ensure(kernel, tmp_path)
    kernel.script += "# somebody's rule"
    assert ensure(kernel, tmp_path)
    kernel.flush_ruleset()
    assert ensure(kernel, tmp_path)
    assert ensure(FakeKernel(), tmp_path), "after a reboot"


@pytest.mark.parametrize("note", [b"", b"{", b'{"script": 1}'])
def test_without_a_note_it_is_loaded_once_more(tmp_path: Path, note: bytes) -> None:
    kernel = FakeKernel()
    ensure(kernel, tmp_path)
    (tmp_path / NAME).write_bytes(note)
    assert ensure(kernel, tmp_path)
    assert not ensure(kernel, tmp_path)


def test_a_failed_load_is_not_noted(tmp_path: Path) -> None:
    kernel = FakeKernel()
    kernel.stop_after(0)
    with pytest.raises(CrashError):
        ensure(kernel, tmp_path)
    kernel.stop_after(None)
    assert ensure(kernel, tmp_path)
