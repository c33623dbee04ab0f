"""Scripts for the `nft` command, run as a child process.

Errors:

    NftError            the environment: no nft, no permission, no answer
    └── ScriptError     nft refused a script: a bug in the frame, or an nft that is too old
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence

_WHERE = re.compile(r"^[^\s:]+:(\d+):\d+(?:-\d+)?: Error: ")


class NftError(Exception):
    """What nft or the kernel refused, and why."""


class ScriptError(NftError):
    """nft refused a script; nothing of it was done.

    said: its own words; line: number of the first line it complains about, from 1, 0 if it named none.
    """

    def __init__(self, said: str, line: int, text: str) -> None:
        self.said = said
        self.line = line
        place = f", line {line} ({text.strip()})" if line else ""
        super().__init__(f"nft refused our script{place}: {said}")


def run(script: str, seconds: float, options: Sequence[str], started: Callable[[int], None]) -> None:
    """Run `nft -f -` with a script.

    seconds: how long it may take. options: further options of the command.
    started: called with the child's process id.

    Raises:
        ScriptError: nft refused the script.
        NftError: there is no nft, or it took longer than `seconds`.
    """
    try:
        child = subprocess.Popen(
            ("nft", *options, "-f", "-"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise NftError("there is no nft command in PATH: install nftables") from None
    except OSError as error:
        raise NftError(f"nft could not be started: {error}") from error
    with child:
        started(child.pid)
        try:
            _, said = child.communicate(script, seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            raise NftError(f"nft did not finish in {seconds:g} s and was stopped") from None
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise refusal(script, said, child.returncode)


def refusal(script: str, said: str, status: int) -> NftError:
    """The error that nft's complaint on a script stands for."""
    said = said.strip()
    if "Operation not permitted" in said:
        return NftError(f"nft may not change tables: {said.splitlines()[0]}; edgeproxy needs CAP_NET_ADMIN")
    first = said.splitlines()[0] if said else f"exit status {status} without a word"
    where = _WHERE.match(first)
    if where is None:
        return ScriptError(first, 0, "")
    lines = script.splitlines()
    line = int(where.group(1))
    text = lines[line - 1] if 1 <= line <= len(lines) else ""
    return ScriptError(first[where.end() :], line, text)
