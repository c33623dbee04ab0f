"""The log of virtual servers that are ours: what a crash leaves of it is still true."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.address import parse
from edgeproxy.model import Frontend, Protocol, Reason
from edgeproxy.ownership import OwnershipLog, fold, line, scope

HERE = "boot 1 netns 2"
WEB = Frontend(parse("10.96.0.10"), Protocol.TCP, 8000)
DNS = Frontend(parse("fd00:96::1"), Protocol.UDP, 53)
FRONTENDS = st.sampled_from([WEB, DNS, Frontend(parse("10.96.0.9"), Protocol.SCTP, 1)])


@given(history=st.lists(st.tuples(st.booleans(), FRONTENDS), max_size=6), data=st.data())
def test_a_cut_file_knows_what_its_whole_lines_say(
    history: list[tuple[bool, Frontend]], data: st.DataObject
) -> None:
    lines = [HERE, *(f"{'+' if added else '-'} {line(each)}" for added, each in history)]
    whole = "\n".join(lines) + "\n"
    content = whole[: data.draw(st.integers(len(HERE) + 1, len(whole)))]
    owned: set[Frontend] = set()
    for added, each in history[: content.count("\n") - 1]:
        (owned.add if added else owned.discard)(each)
    assert fold(content, HERE) == owned


def test_lines() -> None:
    assert (line(WEB), line(DNS)) == ("tcp 10.96.0.10 8000", "udp fd00:96::1 53")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "+",
        "+ tcp 10.96.0.10",
        "+ tcp 10.96.0 80",
        "+ icmp 10.96.0.1 80",
        "+ tcp 10.96.0.1 x",
        "? tcp 10.96.0.1 80",
    ],
)
def test_what_cannot_be_read_is_passed_over(bad: str) -> None:
    assert fold(f"{HERE}\n+ {line(WEB)}\n{bad}\n+ {line(DNS)}\n", HERE) == {WEB, DNS}


@pytest.mark.parametrize("head", ["boot 2 netns 2", "boot 1 netns 3", ""])
def test_another_boot_or_namespace_is_another_ipvs(head: str) -> None:
    assert fold(f"{head}\n+ {line(WEB)}\n", HERE) == frozenset()


def test_the_file(tmp_path: Path) -> None:
    log = OwnershipLog(tmp_path, HERE)
    assert log.read() == frozenset()
    log.rewrite([WEB])
    log.add([DNS])
    log.remove([WEB])
    log.add([])
    assert OwnershipLog(tmp_path, HERE).read() == {DNS}
    assert (tmp_path / "owned").read_text() == (
        f"{HERE}\n+ tcp 10.96.0.10 8000\n+ udp fd00:96::1 53\n- tcp 10.96.0.10 8000\n"
    )
    log.rewrite(log.read())
    assert (tmp_path / "owned").read_text() == f"{HERE}\n+ udp fd00:96::1 53\n"


def test_a_cut_line_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    log = OwnershipLog(tmp_path, HERE)
    log.rewrite([WEB])
    with (tmp_path / "owned").open("a") as file:
        file.write("+ udp fd00:96::")
    log.add([DNS])
    assert WEB in log.read()


def test_a_file_that_cannot_be_written_is_a_finding_and_stops_nothing(tmp_path: Path) -> None:
    log = OwnershipLog(tmp_path / "absent", HERE)
    log.add([WEB])
    (finding,) = log.findings()
    assert finding.reason is Reason.STATE
    assert "absent/owned cannot be written (No such file or directory)" in finding.message
    log.rewrite([WEB])
    assert log.incomplete
    (tmp_path / "absent").mkdir()
    log.rewrite([WEB, DNS])
    assert not log.incomplete
    assert log.findings() == ()
    assert log.read() == {WEB, DNS}


def test_scope_names_boot_and_namespace() -> None:
    assert scope() == scope()
    assert scope().startswith("boot ")
    assert " netns " in scope()
