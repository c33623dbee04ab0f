"""`@kp`: says which behaviour of the catalogue a test shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
import pytest

MARK = "kp"
Test = TypeVar("Test", bound=Callable[..., object])


class Behaviour(msgspec.Struct, frozen=True):
    """What a test shows.

    number: `KP-070`. text: the behaviour in one line. differs: what kube-proxy's IPVS mode does
    instead, "" where it does the same.
    """

    number: str
    text: str
    differs: str = ""


class Result(msgspec.Struct, frozen=True):
    """One test of one behaviour. outcome: passed, failed or skipped; note: why it was skipped."""

    test: str
    behaviour: Behaviour
    outcome: str
    note: str = ""


def kp(number: str, text: str, *, differs: str = "") -> Callable[[Test], Test]:
    """Registers the test for a behaviour; a test that shows several carries several."""

    def mark(test: Test) -> Test:
        marked: Test = getattr(pytest.mark, MARK)(Behaviour(number, text, differs))(test)
        return marked

    return mark


def behaviours(item: pytest.Item) -> list[Behaviour]:
    """What a collected test shows, in the order of its decorators."""
    return [found for marker in reversed([*item.iter_markers(MARK)]) for found in marker.args]
