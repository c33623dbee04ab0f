"""The `edgeproxy` command. Data goes to stdout, talk to stderr.

Exit codes: 0 done, 1 failed, 2 usage, 3 store or daemon not reachable, 4 findings, 78 bad configuration.

Modules are imported where a command needs them: `status` must not load gRPC, nor `run` rich.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click
import msgspec

from edgeproxy import __version__
from edgeproxy.config import DEFAULT_PATH, ConfigurationError, Settings, load
from edgeproxy.state import StateError, cordon, uncordon

if TYPE_CHECKING:
    from edgeproxy.check import Report
    from edgeproxy.model import Finding

F = TypeVar("F", bound=Callable[..., object])


class Exit(enum.IntEnum):
    """Exit codes; `CONFIGURATION` is EX_CONFIG of sysexits.h."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    FINDINGS = 4
    CONFIGURATION = 78


def _common(command: F) -> F:
    """The options every command has."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
    config = click.option(
        "--config",
        type=click.Path(path_type=Path),
        default=DEFAULT_PATH,
        show_default=True,
        metavar="FILE",
        help="Configuration file.",
    )
    return config(as_json(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeproxy")
def cli() -> None:
    """Service proxy for hosts without Kubernetes: records in etcd to IPVS and node ports."""


@cli.command()
@_common
def run(config: Path, *, as_json: bool) -> None:
    """Run the daemon in the foreground. --json: log lines as JSON."""
    settings = _settings(config)
    from edgeproxy.systemd import configure_logging

    configure_logging(as_json=as_json)
    from edgeproxy.daemon import run as run_daemon

    try:
        sys.exit(run_daemon(settings, config))
    except StateError as error:
        _fail(Exit.FAILED, error)


@cli.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--store", is_flag=True, help="Check the records that are in the store now.")
@_common
def check(files: tuple[Path, ...], config: Path, *, store: bool, as_json: bool) -> None:
    """Check the configuration, record FILES, or what is in the store.

    A record file is a JSON object of key -> record; keys in full or without the prefix:

    \b
        {"web": {"clusterIP": "10.96.0.10", "ports": [{"port": 8000}]},
         "web/endpoints/a": "10.1.1.2:80"}
    """
    if store and files:
        raise click.UsageError("give FILES or --store, not both")
    try:
        settings = load(config)
    except ConfigurationError as error:
        if as_json:
            _print_json({"source": error.source, "problems": error.problems})
        _fail(Exit.CONFIGURATION, error)
    if not files and not store:
        if as_json:
            _print_json({"source": str(config), "problems": []})
        click.echo(f"{config} is good", err=True)
        return
    report = _report(files, settings)
    if as_json:
        _print_json(report)
    for finding in report.findings if not as_json else ():
        click.echo(_line(finding))
    counts = f"{report.services} services, {report.endpoints} endpoints, {len(report.findings)} findings"
    click.echo(f"{report.source}{f' at revision {report.revision}' if store else ''}: {counts}", err=True)
    if report.findings:
        sys.exit(Exit.FINDINGS)


def _report(files: tuple[Path, ...], settings: Settings) -> Report:
    from edgeproxy.check import check_files, check_store
    from edgeproxy.etcd.errors import StoreError

    try:
        return check_files(files, settings) if files else check_store(settings)
    except StoreError as error:
        _fail(Exit.UNREACHABLE, error)
    except ConfigurationError as error:
        _fail(Exit.CONFIGURATION, error)


@cli.command()
@_common
def status(config: Path, *, as_json: bool) -> None:
    """Show what the daemon of this host serves, and every finding."""
    from edgeproxy.control import ControlError, NotRunning, ask
    from edgeproxy.status import Status

    settings = _settings(config, check_files=False)
    try:
        found = ask(settings.state.dir, "status", Status)
    except NotRunning as error:
        _fail(Exit.UNREACHABLE, error)
    except ControlError as error:
        _fail(Exit.FAILED, error)
    if as_json:
        _print_json(found)
    else:
        from edgeproxy.status_text import print_status

        print_status(found, sys.stdout)


@cli.command()
@_common
def cleanup(config: Path, *, as_json: bool) -> None:
    """Remove everything of edgeproxy from the kernel of this host. The daemon must be stopped."""
    from edgeproxy.cleanup import CleanupError
    from edgeproxy.cleanup import cleanup as remove_all
    from edgeproxy.state import Lock

    settings = _settings(config, check_files=False)
    removed: list[str] = []
    try:
        with Lock.acquire(settings.state.dir):
            for line in remove_all(settings):
                removed.append(line)
                if not as_json:
                    click.echo(line)
    except (StateError, CleanupError) as error:
        if as_json:
            _print_json({"removed": removed})
        _fail(Exit.FAILED, error)
    if as_json:
        _print_json({"removed": removed})
    if not removed:
        click.echo("nothing to remove", err=True)


@cli.command("cordon")
@_common
def cordon_command(config: Path, *, as_json: bool) -> None:
    """Mark this host as draining: /healthz answers 503 until `uncordon`, traffic goes on."""
    _mark("cordon", cordon, config, as_json=as_json)


@cli.command("uncordon")
@_common
def uncordon_command(config: Path, *, as_json: bool) -> None:
    """Take the draining mark away."""
    _mark("uncordon", uncordon, config, as_json=as_json)


def _mark(command: str, act: Callable[[Path], bool], config: Path, *, as_json: bool) -> None:
    """Write the mark first, so that it holds whether or not a daemon hears of it."""
    from edgeproxy.control import ControlError, NotRunning, tell

    directory = _settings(config, check_files=False).state.dir
    try:
        changed = act(directory)
        tell(directory, command)
        told = True
    except NotRunning:
        told = False
    except (StateError, ControlError) as error:
        _fail(Exit.FAILED, error)
    if as_json:
        _print_json({"cordoned": command == "cordon", "changed": changed, "daemon": told})
    now = f"this host is {command}ed" + ("" if changed else " already")
    click.echo(now if told else f"{now}; no daemon is running, the next one obeys it", err=True)


@cli.command("install-units")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/"),
    show_default=True,
    help="Directory to install below, for images and packages.",
)
@_common
def install_units_command(root: Path, config: Path, *, as_json: bool) -> None:
    """Install the systemd unit with its modules-load, sysctl and sysusers files.

    An existing configuration is kept. With --root / on a running systemd the user is made and the
    unit is read, too. The unit uses /etc/edgeproxy/edgeproxy.toml whatever --config says.
    """
    from edgeproxy import install

    command = install.own_command()
    if hidden := install.unreachable_for_unit(command):
        click.echo(f"warning: the unit cannot start {command}: it does not see {hidden}", err=True)
    try:
        files = []
        for file in install.install_units(root, command):
            files.append(file)
            if not as_json:
                click.echo(f"{file.outcome:9} {file.path}")
        if as_json:
            _print_json({"files": files})
        if root.resolve() == Path("/") and install.systemd_runs_here():
            for line in install.activate():
                click.echo(f"running: {line}", err=True)
    except install.InstallError as error:
        _fail(Exit.FAILED, error)
    click.echo("next: edit the configuration, then `systemctl enable --now edgeproxy`", err=True)


def _settings(config: Path, *, check_files: bool = True) -> Settings:
    try:
        return load(config, check_files=check_files)
    except ConfigurationError as error:
        _fail(Exit.CONFIGURATION, error)


def _fail(code: Exit, error: Exception) -> NoReturn:
    click.echo(str(error), err=True)
    sys.exit(code)


def _print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def _line(finding: Finding) -> str:
    where = finding.key or "(host)"
    if finding.revision:
        where += f" (revision {finding.revision})"
    path = f" {finding.path}:" if finding.path else ""
    return f"{where}:{path} {finding.message} [{finding.reason}]"


def main() -> None:
    """Entry point of the installed command."""
    cli(prog_name="edgeproxy")
