"""The command: exit codes, what goes to stdout and what to stderr, both output forms."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeproxy.cli import cli
from edgeproxy.control_server import ControlServer
from edgeproxy.model import Finding, Reason
from edgeproxy.state import Lock
from edgeproxy.status import KernelCounts, Status, StoreStatus
from tests.bad_configurations import BAD_CONFIGURATIONS, Bad

RESERVED = (
    "plan",
    "apply",
    "get",
    "delete",
    "doctor",
    "explain",
    "wait",
    "nodes",
    "history",
    "top",
    "register",
)
COMMANDS = ("run", "check", "status", "cleanup", "cordon", "uncordon", "install-units")
STATUS = Status(
    version="1.0",
    node="edge-1",
    pid=7,
    uptime=61.0,
    revision=40,
    revision_seen=42,
    ready=True,
    healthy=True,
    cordoned=False,
    services=3,
    endpoints=9,
    synced=2.0,
    store=StoreStatus(endpoint="http://a:2379", connected=True, age=1.0),
    kernel=KernelCounts(virtual_servers=4, real_servers=12),
    findings=(Finding("/services/web", 40, "ports[0].nodePort", Reason.CONFLICT, "36200 is taken by api"),),
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "edgeproxy.toml"
    (tmp_path / "state").mkdir()
    path.write_text(f'[state]\ndir = "{tmp_path}/state"\n[etcd]\nendpoints = ["http://127.0.0.1:1"]\n')
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


class Daemon:
    """A control server in a thread of its own, as the real daemon is in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.heard: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        commands = {
            "status": lambda: STATUS,
            "cordon": lambda: self.heard.append("cordon"),
            "uncordon": lambda: self.heard.append("uncordon"),
        }
        self._server = ControlServer(directory, commands)
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(5)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture
def daemon(config: Path) -> Iterator[Daemon]:
    daemon = Daemon(config.parent / "state")
    yield daemon
    daemon.stop()


def test_help_names_the_commands_there_are() -> None:
    result = call("--help")

    assert result.exit_code == 0
    listed = [
        line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines() if line.strip()
    ]
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_names_are_usage_errors(name: str) -> None:
    result = call(name)

    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_common_options(name: str) -> None:
    shown = call(name, "--help").stdout

    assert "--config" in shown
    assert "--json" in shown
    assert call(name, "--no-such-option").exit_code == 2


@pytest.mark.parametrize("bad", BAD_CONFIGURATIONS, ids=lambda bad: bad.name)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_bad_configuration_is_exit_78_with_everything_on_stderr(
    command: str, bad: Bad, config: Path
) -> None:
    config.write_text(bad.text)

    result = call(command, "--config", config)

    assert (result.exit_code, result.stdout) == (78, "")
    assert all(fragment in result.stderr for fragment in bad.fragments)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "install-units"])
def test_a_missing_configuration_is_exit_78(command: str, tmp_path: Path) -> None:
    result = call(command, "--config", tmp_path / "none.toml")

    assert (result.exit_code, result.stdout) == (78, "")
    assert "none.toml: cannot be read: No such file" in result.stderr


def test_check_of_a_good_configuration(config: Path) -> None:
    result = call("check", "--config", config)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "is good" in result.stderr

    assert json.loads(call("check", "--json", "--config", config).stdout) == {
        "source": str(config),
        "problems": [],
    }


def test_check_of_a_bad_configuration_as_json(config: Path) -> None:
    config.write_text("[proxy]\nmark_bit = 32\n")

    result = call("check", "--json", "--config", config)

    assert result.exit_code == 78
    (problem,) = json.loads(result.stdout)["problems"]
    assert problem["where"] == "proxy.mark_bit"


def test_check_of_record_files(config: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(
        '{"web": {"clusterIP": "10.96.0.10", "ports": [{"port": 8000}]}, "web/endpoints/a": "10.1.1.2"}'
    )
    bad.write_text('{"api": {"clusterIP": "10.96.0.11", "ports": [{"port": "80"}]}}')

    assert call("check", "--config", config, good).exit_code == 0
    result = call("check", "--config", config, good, bad, tmp_path / "none.json")

    assert result.exit_code == 4
    lines = result.stdout.splitlines()
    assert any(line.startswith("/services/api: ports[0].port: ") for line in lines)
    assert any(line.startswith(f"{tmp_path}/none.json: cannot be read: No such file") for line in lines)
    assert "revision" not in result.stdout
    found = json.loads(call("check", "--json", "--config", config, bad).stdout)
    assert set(found["findings"][0]) == {"key", "revision", "path", "reason", "message"}


def test_check_judges_records_by_the_configuration(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text('{"web": {"clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 40000}]}}')

    result = call("check", "--config", config, path)
    assert result.exit_code == 4
    assert "40000" in result.stdout
    assert "30000-36999" in result.stdout

    config.write_text(config.read_text() + '[proxy]\nnode_port_range = "40000-40010"\n')
    assert call("check", "--config", config, path).exit_code == 0


def test_check_of_a_store_that_does_not_answer(config: Path) -> None:
    result = call("check", "--store", "--config", config)

    assert (result.exit_code, result.stdout) == (3, "")
    assert "127.0.0.1:1" in result.stderr


def test_files_and_store_exclude_each_other(config: Path) -> None:
    assert call("check", "--store", "--config", config, "x.json").exit_code == 2


def test_status(config: Path, daemon: Daemon) -> None:
    result = call("status", "--config", config)

    assert (result.exit_code, result.stderr) == (0, "")
    assert "edgeproxy 1.0 on edge-1 (pid 7): ready, healthy" in result.stdout
    assert "40 in the kernel, 42 received, last sync 2 s ago" in result.stdout
    assert "ports[0].nodePort" in result.stdout
    assert "36200 is taken by api" in result.stdout


def test_status_as_json_has_what_the_contract_names(config: Path, daemon: Daemon) -> None:
    found = json.loads(call("status", "--json", "--config", config).stdout)

    assert (found["revision"], found["ready"], found["services"]) == (40, True, 3)
    assert found["findings"] == [
        {
            "key": "/services/web",
            "revision": 40,
            "path": "ports[0].nodePort",
            "reason": "Conflict",
            "message": "36200 is taken by api",
        }
    ]
    assert found["store"] == {"endpoint": "http://a:2379", "connected": True, "age": 1.0}


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_status_without_a_daemon(config: Path, options: tuple[str, ...]) -> None:
    result = call("status", "--config", config, *options)

    assert (result.exit_code, result.stdout) == (3, "")
    assert "no daemon answers" in result.stderr


def test_status_does_not_need_the_keys_of_etcd(config: Path, daemon: Daemon) -> None:
    config.write_text(config.read_text().replace("http:", "https:") + 'ca_file = "/nonexistent/ca.pem"\n')

    assert call("check", "--config", config).exit_code == 78
    assert call("status", "--config", config).exit_code == 0


def test_cordon_reaches_disk_and_daemon(config: Path, daemon: Daemon) -> None:
    mark = config.parent / "state" / "cordoned"

    assert call("cordon", "--config", config).exit_code == 0
    assert mark.exists()
    assert "already" in call("cordon", "--config", config).stderr
    found = json.loads(call("uncordon", "--json", "--config", config).stdout)

    assert found == {"cordoned": False, "changed": True, "daemon": True}
    assert not mark.exists()
    assert daemon.heard == ["cordon", "cordon", "uncordon"]


def test_cordon_without_a_daemon_waits_for_the_next(config: Path) -> None:
    result = call("cordon", "--config", config)

    assert result.exit_code == 0
    assert "no daemon is running, the next one obeys it" in result.stderr
    assert (config.parent / "state" / "cordoned").exists()


def test_cleanup_refuses_while_a_daemon_holds_the_lock(config: Path) -> None:
    with Lock.acquire(config.parent / "state"):
        result = call("cleanup", "--config", config)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "held by a running edgeproxy daemon" in result.stderr


@pytest.mark.parametrize("command", ["status", "cordon", "check"])
def test_no_command_loads_what_it_does_not_need(command: str, config: Path) -> None:
    program = (
        "import sys\n"
        "from edgeproxy.cli import cli\n"
        f"try: cli([{command!r}, '--config', {str(config)!r}])\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'google.protobuf', 'h11', 'asyncio', 'prometheus_client'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
