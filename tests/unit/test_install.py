"""The unit and its files: what is written where, and that the shipped texts are right."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeproxy import install
from edgeproxy.cli import cli
from edgeproxy.config import parse
from edgeproxy.settings import SECTIONS, Settings

TREE = Path(__file__).parents[2]
UNIT = TREE / "contrib" / "systemd" / "edgeproxy.service"
# systemd-analyze counts in tenths: 2.0.
MOST_EXPOSED = "20"
needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed"
)


def written(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_every_file_is_written_once(tmp_path: Path) -> None:
    first = {file.path: file.outcome for file in install.install_units(tmp_path, "/opt/edge/bin/edgeproxy")}
    second = {file.path: file.outcome for file in install.install_units(tmp_path, "/opt/edge/bin/edgeproxy")}

    assert set(first.values()) == {"written"}
    assert sorted(second.values()) == ["kept", "unchanged", "unchanged", "unchanged", "unchanged"]
    assert written(tmp_path) == [
        "etc/edgeproxy/edgeproxy.toml",
        "etc/modules-load.d/edgeproxy.conf",
        "etc/sysctl.d/60-edgeproxy.conf",
        "etc/systemd/system/edgeproxy.service",
        "etc/sysusers.d/edgeproxy.conf",
    ]
    unit = (tmp_path / "etc/systemd/system/edgeproxy.service").read_text()
    assert "ExecStart=/opt/edge/bin/edgeproxy run --config /etc/edgeproxy/edgeproxy.toml\n" in unit
    assert "/usr/bin/edgeproxy" not in unit


def test_a_configuration_is_never_overwritten_and_a_changed_unit_is(tmp_path: Path) -> None:
    list(install.install_units(tmp_path, "/a/edgeproxy"))
    config = tmp_path / "etc/edgeproxy/edgeproxy.toml"
    config.write_text('[node]\nname = "mine"\n')

    outcomes = {
        Path(file.path).name: file.outcome for file in install.install_units(tmp_path, "/b/edgeproxy")
    }

    assert outcomes["edgeproxy.toml"] == "kept"
    assert outcomes["edgeproxy.service"] == "written"
    assert config.read_text() == '[node]\nname = "mine"\n'


def test_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["install-units", "--root", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    assert f"written   {tmp_path}/etc/systemd/system/edgeproxy.service" in result.stdout
    assert "systemctl enable --now edgeproxy" in result.stderr

    again = CliRunner().invoke(cli, ["install-units", "--json", "--root", str(tmp_path)])
    assert {file["outcome"] for file in json.loads(again.stdout)["files"]} == {"kept", "unchanged"}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")

    result = CliRunner().invoke(cli, ["install-units", "--root", str(tmp_path)])

    assert result.exit_code == 1
    assert "cannot be installed: Not a directory" in result.stderr


def test_own_command_is_absolute_and_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "edgeproxy"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["./edgeproxy", "install-units"])
    assert install.own_command() == str(script)

    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert install.own_command() in ("/usr/bin/edgeproxy", "/usr/bin/python3 -m edgeproxy")


@pytest.mark.parametrize(
    ("command", "hidden"),
    [
        ("/root/venv/bin/edgeproxy", "/root"),
        ("/home/a/edgeproxy", "/home"),
        ("/opt/venv/bin/edgeproxy", None),
    ],
)
def test_a_program_the_sandbox_hides(command: str, hidden: str | None) -> None:
    assert install.unreachable_for_unit(command) == hidden


def uncommented(path: Path) -> str:
    return re.sub(r"^#(?=[a-z_]+ = )", "", path.read_text(), flags=re.MULTILINE)


def test_the_default_configuration_shows_every_key_with_its_default() -> None:
    text = uncommented(TREE / "contrib" / "systemd" / "edgeproxy.toml")
    shown = re.sub(r'(?m)^name = "edge-1"$', "", text)

    assert parse(shown, "default") == Settings()
    for section, keys in SECTIONS.items():
        part = text.partition(f"[{section}]")[2].partition("\n[")[0]
        assert [*re.findall(r"(?m)^([a-z_]+) = ", part)] == [*keys]


def test_the_default_configuration_changes_nothing() -> None:
    assert parse((TREE / "contrib" / "systemd" / "edgeproxy.toml").read_text(), "default") == Settings()


def test_the_example_configuration_is_good() -> None:
    settings = parse((TREE / "examples" / "edgeproxy.toml").read_text(), "example")

    assert len(settings.etcd.endpoints) == 3
    assert len(settings.proxy.service_cidrs) == 2


def test_the_documentation_has_every_key() -> None:
    text = (TREE / "docs" / "configuration.md").read_text()

    for section, keys in SECTIONS.items():
        part = text.partition(f"## `[{section}]`")[2].partition("\n## ")[0]
        assert [*re.findall(r"(?m)^\| `([a-z_]+)` ", part)] == [*keys], section


@pytest.mark.parametrize("word", ["PrivateUsers=", "PrivateNetwork=", "ProcSubset="])
def test_the_unit_is_not_cut_off_from_the_host(word: str) -> None:
    assert not re.search(rf"(?m)^{word}", UNIT.read_text())


@needs_systemd
def test_the_unit_is_at_most_2_0_exposed() -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-200:] + done.stderr
    exposure = re.search(r"exposure level for edgeproxy.service: ([\d.]+)", done.stdout)
    assert exposure
    assert float(exposure[1]) <= 2.0


@needs_systemd
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "edgeproxy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    list(install.install_units(tmp_path, str(program)))

    command = ["systemd-analyze", "verify", str(tmp_path / "etc/systemd/system/edgeproxy.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_user_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    rules = TREE / "contrib" / "systemd" / "sysusers.conf"
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", str(rules)], check=True, capture_output=True)

    assert ":/var/lib/edgeproxy:/usr/sbin/nologin" in (tmp_path / "etc/passwd").read_text()
