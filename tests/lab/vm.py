"""A virtual machine with a kernel that has what edgeproxy needs.

    with LabVM() as vm:
        vm.put_tree(ROOT, "/src")
        print(vm.run(["uname", "-r"]).check().stdout)

The machine is emulated (no /dev/kvm is touched), has no network card, and keeps its disk only as
long as it runs: a reboot from within sees what was written before, the next machine does not.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.channel import Channel, Command, LabError, Limits, Result
from tests.lab.image import Image, image

PORTS = 4
DEFAULT_LIMITS = Limits()
# Alone it takes 15 s; several machines on two processors have been seen to take 200.
BOOT_SECONDS = 600.0
KERNEL_ARGUMENTS = (
    "root=/dev/vda rw console=ttyS0 loglevel=4 panic=-1 mitigations=off audit=0 selinux=0 apparmor=0 "
    "random.trust_cpu=on systemd.show_status=auto net.ifnames=0 rootwait"
)
NOT_SENT = frozenset(
    {".git", ".venv", ".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "build"}
)


class LabVM:
    """One virtual machine. `boot` and `shutdown`, or a `with` block, bound its life.

    memory: MiB of RAM; processors: emulated CPUs.
    directory: where its sockets and console log live; a new temporary one by default.
    stays: it outlives this process; otherwise the kernel ends it with us, however we end.
    """

    def __init__(
        self, memory: int = 2048, processors: int = 2, directory: Path | None = None, stays: bool = False
    ) -> None:
        self.stays = stays
        self.memory = memory
        self.processors = processors
        self.directory = directory or Path(tempfile.mkdtemp(prefix="edgeproxy-lab-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._boot = ""

    @property
    def console(self) -> Path:
        """The log of the machine's serial console."""
        return self.directory / "console.log"

    def __enter__(self) -> Self:
        try:
            return self.boot()
        except BaseException:
            self.shutdown()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def boot(self) -> Self:
        """Starts the machine and waits for its agent.

        Raises:
            LabError: qemu did not start or the agent did not answer; with the console's last lines.
        """
        self.start(image())
        try:
            self.connect(timeout=BOOT_SECONDS)
        except LabError as error:
            raise LabError(f"{error}\n{self.last_words()}") from error
        return self

    def start(self, source: Image) -> None:
        """Starts qemu without waiting for the machine."""
        self.directory.mkdir(parents=True, exist_ok=True)
        log = (self.directory / "qemu.log").open("wb")
        self.process = subprocess.Popen(
            [*(() if self.stays else ("setpriv", "--pdeathsig", "KILL")), *self._qemu(source)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _qemu(self, source: Image) -> list[str]:
        argv = [
            *(
                "qemu-system-x86_64",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                str(self.processors),
            ),
            *("-m", str(self.memory), "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"),
            *("-kernel", str(source.kernel), "-initrd", str(source.initrd), "-append", KERNEL_ARGUMENTS),
            *("-snapshot", "-drive", f"file={source.disk},if=virtio,format=raw,cache=unsafe"),
            *("-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-pidfile", str(self.directory / "qemu.pid")),
        ]
        for port in range(PORTS):
            argv += ["-chardev", f"socket,id=port{port},path={self._port(port)},server=on,wait=off"]
            argv += ["-device", f"virtserialport,chardev=port{port},name=lab.{port}"]
        return argv

    def _port(self, number: int) -> Path:
        return self.directory / f"port{number}"

    def connect(self, port: int = 0, timeout: float = 120) -> None:
        """Connects to the agent on one of its ports; whatever still runs on that port is ended.

        Raises:
            LabError: there is no qemu, or the agent did not answer within `timeout` seconds.
        """
        deadline = time.monotonic() + 20
        while True:
            try:
                self._channel = Channel(self._port(port))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process_id() is None or time.monotonic() > deadline:
                    words = (self.directory / "qemu.log").read_text(errors="replace")
                    raise LabError(f"qemu did not start: {words}") from None
                time.sleep(0.02)
        self._boot = self._channel.hello(timeout)

    def process_id(self) -> int | None:
        """The pid of the machine's qemu, also when another process started it; None if it ended."""
        if self.process:
            return self.process.pid if self.process.poll() is None else None
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.directory / "qemu.pid").read_text())
            if str(self.directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    @property
    def channel(self) -> Channel:
        if self._channel is None:
            raise LabError("the machine is not running: call boot() first")
        return self._channel

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        directory: str = "/",
        environment: dict[str, str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        echo: bool = False,
    ) -> Result:
        """Runs a command in the machine and waits for it. With `echo` its output appears here live.

        Raises:
            LabError: it hung past `limits`, or the machine is gone.
        """
        collected: dict[str, list[bytes]] = {"out": [], "err": []}

        def output(stream: str, data: bytes) -> None:
            collected[stream].append(data)
            if echo:
                show(stream, data)

        self.channel.start(Command(tuple(argv), directory, tuple((environment or {}).items())))
        if stdin:
            self.channel.feed(stdin)
        self.channel.end_input()
        code = self._wait(output, limits, " ".join(argv))
        out, err = (b"".join(collected[stream]).decode(errors="replace") for stream in ("out", "err"))
        return Result(tuple(argv), code, out, err)

    def _wait(self, output: Callable[[str, bytes], None], limits: Limits, what: str) -> int:
        try:
            return self.channel.wait(output, limits, what)
        except LabError as error:
            raise LabError(f"{error}\n{self.last_words()}") from error

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Writes a file in the machine; its directory is made."""
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1"'
        self.run(["sh", "-c", script, "put", path, f"{mode:o}"], stdin=data).check()

    def get(self, path: str) -> bytes:
        """Reads a file from the machine.

        Raises:
            LabError: there is no such file.
        """
        data: list[bytes] = []
        errors: list[bytes] = []
        self.channel.start(Command(("cat", path)))
        self.channel.end_input()
        code = self._wait(
            lambda stream, part: (errors if stream == "err" else data).append(part), Limits(), path
        )
        if code != 0:
            raise LabError(f"{path}: {b''.join(errors).decode(errors='replace').strip()}")
        return b"".join(data)

    def put_tree(self, source: Path, target: str) -> None:
        """Makes `target` in the machine equal to the source tree, caches and the like left out."""
        script = 'rm -rf "$1"; mkdir -p "$1" && tar -xf - -C "$1"'
        self.run(["sh", "-c", script, "put", target], stdin=_tar(source)).check()

    def get_tree(self, source: str, target: Path) -> list[Path]:
        """Copies the files below a directory of the machine to the host; returns the copies."""
        data: list[bytes] = []
        self.channel.start(Command(("tar", "-cf", "-", "-C", source, ".")))
        self.channel.end_input()
        self._wait(
            lambda stream, part: data.append(part) if stream == "out" else None, DEFAULT_LIMITS, source
        )
        copies = []
        with tarfile.open(fileobj=io.BytesIO(b"".join(data))) as archive:
            for entry in archive:
                if entry.isfile() and (content := archive.extractfile(entry)):
                    copies.append(target / entry.name)
                    copies[-1].parent.mkdir(parents=True, exist_ok=True)
                    copies[-1].write_bytes(content.read())
        return copies

    def reboot(self) -> None:
        """Reboots the machine from within, as an operator would, and waits for its agent.

        Raises:
            LabError: it did not come back.
        """
        before = self._boot
        # Its end may get lost with the agent, and that is as good.
        with contextlib.suppress(LabError):
            self.channel.start(Command(("systemctl", "--no-block", "reboot")))
            self.channel.wait(lambda _stream, _data: None, Limits(silence=20, total=20), "reboot")
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(LabError):
                self._boot = self.channel.hello(5)
            if self._boot != before:
                return
        raise LabError(f"the machine did not come back from its reboot\n{self.last_words()}")

    def last_words(self, lines: int = 25) -> str:
        """The end of the console log."""
        with contextlib.suppress(FileNotFoundError):
            text = self.console.read_text(errors="replace").splitlines()
            return "\n".join(["last lines of the machine's console:", *text[-lines:]])
        return "the machine wrote nothing to its console"

    def shutdown(self) -> None:
        """Ends the machine at once: nothing on its disk is kept."""
        if self._channel:
            self._channel.close()
            self._channel = None
        if (pid := self.process_id()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.wait()
            self.process = None
        shutil.rmtree(self.directory, ignore_errors=True)


def show(stream: str, data: bytes) -> None:
    """Passes output of the machine on to our own."""
    target = sys.stdout.buffer if stream == "out" else sys.stderr.buffer
    target.write(data)
    target.flush()


def _tar(source: Path) -> bytes:
    buffer = io.BytesIO()

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if NOT_SENT.intersection(entry.name.split("/")) else entry

    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(source, ".", filter=wanted)
    return buffer.getvalue()
