"""Shows that something is going on: a dot a second behind what is being done, and how long it took."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

SECONDS_PER_DOT = 1.0


@contextlib.contextmanager
def progress(what: str, out: TextIO | None = None) -> Iterator[None]:
    """`what ....... 7.3 s`, written as time goes by. out: stderr by default.

    Nothing else should write to it meanwhile.
    """
    target = out or sys.stderr
    over = threading.Event()

    def write(text: str) -> None:
        target.write(text)
        target.flush()

    def tick() -> None:
        while not over.wait(SECONDS_PER_DOT):
            write(".")

    write(f"{what} ")
    began = time.monotonic()
    ticking = threading.Thread(target=tick, name="progress", daemon=True)
    ticking.start()
    outcome = "failed after "
    try:
        yield
        outcome = ""
    finally:
        over.set()
        ticking.join()
        write(f" {outcome}{time.monotonic() - began:.1f} s\n")
