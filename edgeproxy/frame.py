"""Keeps the frame of our nft tables as `kernel.ruleset` renders it, and writes it only when it is not.

What was loaded, and what the kernel made of it, is noted in the state directory: a daemon that
starts on an intact frame writes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path

import msgspec

from edgeproxy.kernel.nft import Nft
from edgeproxy.kernel.ruleset import Frame, render
from edgeproxy.state import StateError, write_atomically

log = logging.getLogger(__name__)

NAME = "frame"


class _Note(msgspec.Struct, frozen=True):
    """script: digest of what was loaded. kernel: fingerprint of what the kernel held then."""

    script: str
    kernel: str


class FrameKeeper:
    """The frame of one host."""

    def __init__(self, nft: Nft, directory: Path) -> None:
        self._nft = nft
        self._path = directory / NAME
        self._note: _Note | None = None
        # Without a note that can be read the frame is loaded once more.
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._note = msgspec.json.decode(self._path.read_bytes(), type=_Note)

    def ensure(self, frame: Frame) -> bool:
        """Load the frame unless the kernel holds exactly it; true if it was loaded.

        Raises:
            NftError: nft or the kernel refused; the old frame, if any, is still there.
        """
        script = render(frame)
        digest = hashlib.blake2b(script.encode(), digest_size=16).hexdigest()
        if self._note and self._note.script == digest and self._nft.fingerprint() == self._note.kernel:
            return False
        self._nft.load(script)
        self._note = _Note(digest, self._nft.fingerprint() or "")
        try:
            write_atomically(self._path, msgspec.json.encode(self._note))
        except StateError as error:
            # The next start loads the frame once more, which is one harmless transaction.
            log.warning("%s", error)
        return True
