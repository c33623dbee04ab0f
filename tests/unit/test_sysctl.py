"""Names of settings, and outcomes on a directory that stands for /proc/sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeproxy.kernel import sysctl
from edgeproxy.kernel.sysctl import Outcome, Sysctl


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "value").write_text("1\t2\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
    ],
)
def test_names(name: str, file: str) -> None:
    assert sysctl.path(name) == Path("/proc/sys") / file


@pytest.mark.parametrize("name", ["", ".", "net..x", "net/../../etc/passwd", "../x", "/etc/passwd", "net."])
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a kernel setting"):
        sysctl.path(name)


def test_white_space_does_not_matter(root: Path) -> None:
    (outcome,) = sysctl.apply([Sysctl("net.value", "1 2")])
    assert outcome == Outcome("net.value", "1 2", "1\t2")
    assert (root / "net" / "value").read_text() == "1\t2\n"


def test_written_when_different_and_only_by_apply(root: Path) -> None:
    wanted = [Sysctl("net.value", "3")]
    (checked,) = sysctl.check(wanted)
    assert (checked.good, checked.found, checked.written) == (False, "1\t2", False)
    (applied,) = sysctl.apply(wanted)
    assert applied == Outcome("net.value", "3", "1\t2", written=True)
    assert str(applied) == f"{root}/net/value is 3, was 1\t2"


def test_absent(root: Path) -> None:
    (outcome,) = sysctl.apply([Sysctl("net.value.deeper", "1")])
    assert outcome.found is None
    assert not outcome.good
    assert not (root / "net" / "other").exists()
    assert "is absent, wanted 1" in str(outcome)
