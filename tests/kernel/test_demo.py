"""`make demo` shows what it should, on one screen."""

from __future__ import annotations

import pytest

from tests.lab.demo import main

SCREEN = 55
"""Lines; it is what a terminal of ordinary height shows without the first lines about packages."""


def test_everything_is_as_it_should_be(capsys: pytest.CaptureFixture[str]) -> None:
    code = main()

    shown = capsys.readouterr()
    assert code == 0, shown.out + shown.err
    assert len(shown.out.splitlines()) <= SCREEN
