"""The agent inside the lab's virtual machine: runs commands for the host over virtio-serial.

One process per port `lab.N`, one command at a time on each. Both directions carry lines of
JSON. The host sends `hello` (answered with the same nonce, so that what an earlier client left
in the pipe is skipped; it also ends that client's command), then `run`, `input`, `eof`,
`resize`, `signal`; the agent answers with `out`, `err` and finally `exit`.

Standard library only: it runs before anything of the project is in the machine.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pty
import selectors
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

PORTS = Path("/dev/virtio-ports")
CHUNK = 1 << 16
# Seconds that the host's clock and ours may differ; each correction wakes systemd's timers.
CLOCK_TOLERANCE = 2
EXIT_NOT_FOUND = 127


class Session:
    """One port and the command that runs on it, if any."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.received = b""
        self.child: subprocess.Popen[bytes] | None = None
        self.outputs: dict[int, str] = {}
        self.stdin = -1
        self.ended = -1
        self.pending = bytearray()
        self.closing = False
        self.selector = selectors.DefaultSelector()
        self.selector.register(port, selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                if key.fd == self.port:
                    self.receive()
                elif key.fd in self.outputs:
                    self.forward(key.fd)
                elif key.fd == self.stdin:
                    self.feed()
                elif key.fd == self.ended:
                    self.reap()

    def send(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.port, data) :]

    def receive(self) -> None:
        data = os.read(self.port, CHUNK)
        if not data:
            # No client on the host: its command must not run on unseen.
            self.end_command()
            time.sleep(0.1)
            return
        *lines, self.received = (self.received + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
                self.handle(json.loads(line))

    def handle(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "hello":
                self.end_command()
                if abs(time.time() - message["time"]) > CLOCK_TOLERANCE:
                    time.clock_settime(time.CLOCK_REALTIME, message["time"])
                boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
                self.send(op="hello", nonce=message["nonce"], boot=boot)
            case "run":
                self.start(message)
            case "input":
                self.pending += base64.b64decode(message["data"])
                self.feed()
            case "eof":
                self.closing = True
                self.feed()
            case "resize" if self.stdin >= 0:
                size = struct.pack("HHHH", message["rows"], message["columns"], 0, 0)
                fcntl.ioctl(self.stdin, termios.TIOCSWINSZ, size)
            case "signal" if self.child:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.child.pid, message["number"])

    def start(self, message: dict[str, Any]) -> None:
        self.end_command()
        self.pending.clear()
        self.closing = False
        environment = os.environ | message["environment"]
        terminal: tuple[int, int] | None = pty.openpty() if message["terminal"] else None
        ends = terminal[1] if terminal else subprocess.PIPE
        try:
            self.child = subprocess.Popen(
                message["argv"],
                stdin=ends,
                stdout=ends,
                stderr=ends,
                cwd=message["cwd"],
                env=environment,
                start_new_session=True,
                # Safe: this process has no threads.
                preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if terminal else None,  # noqa: PLW1509
            )
        except OSError as error:
            self.output("err", f"{message['argv'][0]}: {error.strerror}\n".encode())
            self.send(op="exit", code=EXIT_NOT_FOUND)
            return
        if terminal:
            os.close(terminal[1])
            self.stdin = terminal[0]
            self.outputs = {terminal[0]: "out"}
        else:
            assert self.child.stdin and self.child.stdout and self.child.stderr
            self.stdin = os.dup(self.child.stdin.fileno())
            self.child.stdin.close()
            os.set_blocking(self.stdin, False)
            self.outputs = {
                os.dup(self.child.stdout.fileno()): "out",
                os.dup(self.child.stderr.fileno()): "err",
            }
            self.child.stdout.close()
            self.child.stderr.close()
        # The pidfd, not the end of the pipes, says that it ended: a grandchild may keep them open.
        self.ended = os.pidfd_open(self.child.pid)
        for fd in self.outputs:
            os.set_blocking(fd, False)
        for fd in (self.ended, *self.outputs):
            self.selector.register(fd, selectors.EVENT_READ)

    def output(self, stream: str, data: bytes) -> None:
        self.send(op=stream, data=base64.b64encode(data).decode())

    def forward(self, fd: int) -> bool:
        """Send on what `fd` has; returns whether there may be more."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the terminal's last process is gone
            data = b""
        if not data:
            self.close_output(fd)
            return False
        self.output(self.outputs[fd], data)
        return True

    def close_output(self, fd: int) -> None:
        del self.outputs[fd]
        self.selector.unregister(fd)
        if fd == self.stdin:
            self.stdin = -1
        os.close(fd)

    def feed(self) -> None:
        if self.stdin < 0:
            self.pending.clear()
            return
        terminal = self.stdin in self.outputs
        try:
            while self.pending:
                del self.pending[: os.write(self.stdin, self.pending)]
        except BlockingIOError:
            pass
        except OSError:
            self.pending.clear()
            self.closing = True
        if terminal:
            return
        waiting = self.stdin in self.selector.get_map()
        if self.pending and not waiting:
            self.selector.register(self.stdin, selectors.EVENT_WRITE)
        elif not self.pending and waiting:
            self.selector.unregister(self.stdin)
        if self.closing and not self.pending:
            os.close(self.stdin)
            self.stdin = -1

    def reap(self) -> None:
        if self.child is None:
            return
        code = self.child.wait()
        for fd in list(self.outputs):
            while self.forward(fd):
                pass
        self.drop()
        self.send(op="exit", code=code if code >= 0 else 128 - code)

    def drop(self) -> None:
        """Forget the command, which has ended."""
        self.child = None
        self.selector.unregister(self.ended)
        os.close(self.ended)
        for fd in list(self.outputs):
            self.close_output(fd)
        if self.stdin >= 0:
            if self.stdin in self.selector.get_map():
                self.selector.unregister(self.stdin)
            os.close(self.stdin)
            self.stdin = -1

    def end_command(self) -> None:
        if self.child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        self.drop()


def ports() -> list[Path]:
    """The ports' devices, once udev has named them."""
    while not (found := sorted(PORTS.glob("lab.*"))):
        time.sleep(0.05)
    return found


def main() -> None:
    os.environ.setdefault("HOME", "/root")
    os.environ["PATH"] = "/opt/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    children = []
    for path in ports():
        if (pid := os.fork()) == 0:
            Session(os.open(path, os.O_RDWR)).serve()
            sys.exit(1)
        children.append(pid)
    os.wait()


if __name__ == "__main__":
    main()
