"""What keeps the daemon from starting."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeproxy.config import ConfigurationError, load
from tests.conformance.behaviour import kp


def refused(path: Path, document: str) -> str:
    """What is said about a configuration that is refused."""
    path.write_text(document)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    return "\n".join(map(str, caught.value.problems))


@kp("KP-233", "A timeout, period or network out of range keeps the daemon from starting; its key is named")
@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("proxy", 'resync = "0s"'),
        ("proxy", 'min_sync = "-1s"'),
        ("proxy", 'service_cidrs = ["10.96.0.0/33"]'),
        ("proxy", 'anchor_cidrs = ["169.254.96.0/20"]'),
        ("proxy", "mark_bit = 32"),
        ("ipvs", 'tcp_timeout = "-5s"'),
        ("ipvs", 'udp_timeout = "90"'),
        ("etcd", 'dial_timeout = "0s"'),
    ],
)
def test_kp_233_out_of_range(tmp_path: Path, section: str, line: str) -> None:
    said = refused(tmp_path / "edgeproxy.toml", f"[{section}]\n{line}\n")
    assert f"{section}.{line.partition(' ')[0]}" in said


@kp("KP-234", "`min_sync` above resync keeps the daemon from starting")
def test_kp_234_min_sync_above_resync(tmp_path: Path) -> None:
    said = refused(tmp_path / "edgeproxy.toml", '[proxy]\nresync = "10s"\nmin_sync = "11s"\n')
    assert "proxy.min_sync" in said
    assert "proxy.resync" in said
