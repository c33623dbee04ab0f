"""Command line of the lab.

python -m tests.lab run -- pytest tests/kernel      a fresh machine for one command
python -m tests.lab up | exec -- CMD | down         a machine that stays, for fast iteration
python -m tests.lab shell                           look around in one
python -m tests.lab build                           only make the image
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab.channel import Channel, Command, LabError, Limits
from tests.lab.image import CACHE, ROOT, ImageError, image
from tests.lab.kernel import has_ip_vs
from tests.lab.progress import progress
from tests.lab.vm import PORTS, LabVM, show

SOURCE = "/src"
RESULTS = "/results"
# Tells a test or benchmark where to leave files for the caller.
RESULTS_VARIABLE = "LAB_RESULTS"
EXIT_LAB = 3


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    # SIGTERM ends as Ctrl-C does: through the clean-up of every `with`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return int(arguments.action(arguments))
    except (LabError, ImageError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return EXIT_LAB
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    build = actions.add_parser("build", help="build the machine's image unless it is in the cache")
    build.set_defaults(action=_build)

    run = actions.add_parser("run", help="run a command in a fresh machine; its exit code is ours")
    run.set_defaults(action=_run)
    run.add_argument("--vm", action="store_true", help="use a machine even where this kernel has ip_vs")
    run.add_argument("--memory", type=int, default=2048, metavar="MIB")
    _add_command(run)

    up = actions.add_parser("up", help="start a machine that stays")
    up.set_defaults(action=_up)
    up.add_argument("--memory", type=int, default=2048, metavar="MIB")
    _add_name(up)

    execute = actions.add_parser("exec", help="run a command in the machine that `up` started")
    execute.set_defaults(action=_exec)
    execute.add_argument(
        "--sync",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="send the current tree first (default)",
    )
    _add_name(execute)
    _add_command(execute)

    shell = actions.add_parser("shell", help="a shell in the machine of `up`, or in one of its own")
    shell.set_defaults(action=_shell)
    _add_name(shell)

    down = actions.add_parser("down", help="end the machine that `up` started")
    down.set_defaults(action=_down)
    _add_name(down)

    status = actions.add_parser("status", help="list the machines that `up` started")
    status.set_defaults(action=_status)
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="default", help="which machine, to have several (default: default)")


def _add_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "results", metavar="DIR",
                        help=f"where files that the command leaves in {RESULTS} are copied to")  # fmt: skip
    parser.add_argument("--silence", type=float, default=300, metavar="SECONDS",
                        help="without output for so long, it counts as hung (default: 300)")  # fmt: skip
    parser.add_argument("--deadline", type=float, default=3600, metavar="SECONDS",
                        help="end it after so long in any case (default: 3600)")  # fmt: skip
    parser.add_argument(
        "command", nargs="+", metavar="COMMAND", help="after `--`; runs in the project's root"
    )


def _build(_: argparse.Namespace) -> int:
    print(image().disk)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.vm and has_ip_vs():
        print("lab: this kernel has ip_vs: running natively", file=sys.stderr)
        path = f"{ROOT}/.venv/bin:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, RESULTS_VARIABLE: str(arguments.results)}
        arguments.results.mkdir(parents=True, exist_ok=True)
        return subprocess.run(arguments.command, cwd=ROOT, env=environment, check=False).returncode
    image()
    with contextlib.ExitStack() as stack:
        with progress("lab: this kernel has no ip_vs: booting a machine that has"):
            vm = stack.enter_context(LabVM(memory=arguments.memory))
            _send_tree(vm)
        return _command(vm, arguments)


def _send_tree(vm: LabVM) -> None:
    # Byte code goes along: compiling inside the machine costs seconds.
    for part in ("edgeproxy", "tests"):
        compileall.compile_dir(ROOT / part, quiet=2)
    vm.put_tree(ROOT, SOURCE)


def _command(vm: LabVM, arguments: argparse.Namespace) -> int:
    vm.run(["sh", "-c", f"rm -rf {RESULTS}/*"]).check()
    columns = str(shutil.get_terminal_size((100, 24)).columns)
    result = vm.run(
        arguments.command,
        directory=SOURCE,
        environment={"PYTHONUNBUFFERED": "1", "COLUMNS": columns, RESULTS_VARIABLE: RESULTS},
        limits=Limits(arguments.silence, arguments.deadline),
        echo=True,
    )
    for path in vm.get_tree(RESULTS, arguments.results):
        print(f"lab: result {path}", file=sys.stderr)
    return result.code


def _state(name: str) -> Path:
    """The file that holds the directory of the machine of that name."""
    return CACHE / "up" / name


def _attach(name: str) -> LabVM:
    with contextlib.suppress(FileNotFoundError):
        vm = LabVM(directory=Path(_state(name).read_text()))
        if vm.process_id() is not None:
            return vm
    raise LabError(f"no machine {name!r} is running: start one with `python -m tests.lab up --name {name}`")


def _up(arguments: argparse.Namespace) -> int:
    state = _state(arguments.name)
    with contextlib.suppress(LabError):
        print(f"lab: machine {arguments.name!r} is up already, pid {_attach(arguments.name).process_id()}")
        return 0
    vm = LabVM(memory=arguments.memory, stays=True)
    try:
        vm.boot()
        _send_tree(vm)
    except BaseException:
        vm.shutdown()
        raise
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text(str(vm.directory))
    print(f"lab: machine {arguments.name!r} is up, pid {vm.process_id()}, console {vm.console}")
    return 0


@contextlib.contextmanager
def _session(name: str) -> Iterator[LabVM]:
    """The machine of `up`, connected through a port that nobody else uses now."""
    vm = _attach(name)
    for port in range(PORTS):
        with (vm.directory / f"port{port}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            vm.connect(port)
            try:
                yield vm
            finally:
                vm.channel.close()
            return
    raise LabError(f"machine {name!r} runs {PORTS} commands already: wait, or `up` one more with --name")


def _exec(arguments: argparse.Namespace) -> int:
    with _session(arguments.name) as vm:
        if arguments.sync:
            _send_tree(vm)
        return _command(vm, arguments)


def _down(arguments: argparse.Namespace) -> int:
    with contextlib.suppress(LabError):
        _attach(arguments.name).shutdown()
    _state(arguments.name).unlink(missing_ok=True)
    return 0


def _status(_: argparse.Namespace) -> int:
    for path in sorted((CACHE / "up").glob("*")):
        with contextlib.suppress(LabError):
            vm = _attach(path.name)
            print(f"{path.name}: pid {vm.process_id()}, {vm.directory}")
    return 0


def _shell(arguments: argparse.Namespace) -> int:
    if _state(arguments.name).exists():
        with _session(arguments.name) as vm:
            return _interact(vm.channel)
    with LabVM() as vm:
        _send_tree(vm)
        return _interact(vm.channel)


def _interact(channel: Channel) -> int:
    size = shutil.get_terminal_size()
    environment = (("TERM", os.environ.get("TERM", "vt100")), ("PS1", r"lab:\w\$ "))
    channel.start(Command(("bash", "--norc"), SOURCE, environment, (size.lines, size.columns)))

    def type_in() -> None:
        while data := os.read(0, 4096):
            channel.feed(data)

    saved = termios.tcgetattr(0) if os.isatty(0) else None
    if saved:
        tty.setraw(0)
    try:
        threading.Thread(target=type_in, daemon=True).start()
        return channel.wait(show, Limits(silence=86400, total=86400), "shell")
    finally:
        if saved:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)


if __name__ == "__main__":
    sys.exit(main())
