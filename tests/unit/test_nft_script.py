"""What nft's complaints become."""

from __future__ import annotations

import pytest

from edgeproxy.kernel.nft_script import NftError, ScriptError, refusal

SCRIPT = "add table inet x\nadd foo bar\n"


@pytest.mark.parametrize(
    ("said", "line", "words"),
    [
        (
            "/dev/stdin:2:1-7: Error: syntax error, unexpected string\nadd foo bar\n^^^",
            2,
            "(add foo bar): syntax error",
        ),
        ("-:2:5: Error: syntax error", 2, "(add foo bar): syntax error"),
        ("/dev/stdin:9:1-2: Error: odd", 9, "line 9 (): odd"),
        ("internal:0:0-0: Error: Could not process rule: No such file", 0, "Could not process rule"),
        ("nft: invalid option", 0, "nft: invalid option"),
        ("", 0, "exit status 3 without a word"),
    ],
)
def test_the_line_is_named(said: str, line: int, words: str) -> None:
    error = refusal(SCRIPT, said, 3)
    assert isinstance(error, ScriptError)
    assert error.line == line
    assert words in str(error)


def test_missing_permission_is_not_the_scripts_fault() -> None:
    error = refusal(SCRIPT, "netlink: Error: cache initialization failed: Operation not permitted", 1)
    assert type(error) is NftError
    assert "CAP_NET_ADMIN" in str(error)
