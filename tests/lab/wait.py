"""Waiting for a condition with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TooLate(AssertionError):
    """The condition did not come true in time; the message says which one and what was seen last."""


def until(condition: Callable[[], T], deadline: float, what: str, interval: float = 0.02) -> T:
    """Calls `condition` until it is true and returns what it gave.

    deadline, interval: seconds. An exception of `condition` ends the wait at once.

    Raises:
        TooLate: it was still false after `deadline` seconds.
    """
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise TooLate(f"not within {deadline:g} s: {what} (last seen: {value!r})")
        time.sleep(interval)
    return value
