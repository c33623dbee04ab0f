"""Network namespaces that play the machines of a test."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def ip_batch(lines: Sequence[str], namespace: str = "") -> None:
    """Runs commands of `ip` (without the word `ip`) in one process.

    Raises:
        RuntimeError: one of them failed.
    """
    argv = ["ip", *(("-n", namespace) if namespace else ()), "-batch", "-"]
    script = "\n".join(lines)
    done = subprocess.run(argv, input=script, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}\nof:\n{script}")


def _enter(descriptor: int) -> None:
    # os.setns() comes with Python 3.12 only.
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


class Host:
    """A machine of the test: a network namespace with addresses.

    name: what it is called in the test (`host0`, `client`, `a`); `namespace` is its unique name
        in /run/netns.
    address4, address6: its first addresses, as text.
    gateway: name of the proxy host its default route points to, "" if none.
    """

    def __init__(self, name: str, namespace: str, address4: str, address6: str, gateway: str = "") -> None:
        self.name = name
        self.namespace = namespace
        self.address4 = address4
        self.address6 = address6
        self.gateway = gateway
        self._processes: list[subprocess.Popen[str]] = []

    def __repr__(self) -> str:
        return f"Host({self.name}, {self.address4}, {self.address6})"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the namespace: sockets, processes and threads made here belong to it."""
        with contextlib.ExitStack() as stack:
            home, there = (
                stack.enter_context(path.open("rb"))
                for path in (Path("/proc/thread-self/ns/net"), Path("/run/netns", self.namespace))
            )
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def in_namespace(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function inside, in this thread, and returns its value."""
        with self.inside():
            return function(*args, **kwargs)

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Calls a function inside, in a thread of its own (a daemon thread: it must end by itself)."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                with self.inside():
                    value = function(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(value)

        threading.Thread(target=work, name=f"{self.name}:{function!r}", daemon=True).start()
        return future

    def run(
        self, argv: Sequence[str], *, stdin: str | None = None, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside to its end.

        Raises:
            AssertionError: it failed, and `check` is on; the message carries its output.
        """
        with self.inside():
            done = subprocess.run(
                argv, input=stdin, text=True, capture_output=True, timeout=timeout, check=False
            )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(self, argv: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Starts a command inside; it is killed with the topology if it still runs then.

        options: of subprocess.Popen.
        """
        with self.inside():
            process: subprocess.Popen[str] = subprocess.Popen(argv, text=True, **options)  # type: ignore[call-overload]
        self._processes.append(process)
        return process

    def ip(self, *lines: str) -> None:
        """Runs commands of `ip` inside, in one process: `host.ip("route add 10.96.0.0/16 via 10.1.0.11")`."""
        ip_batch(lines, self.namespace)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Reads a `net.` sysctl of the namespace, after setting it if a value is given.

        Dots separate; an interface with a dot in its name can't be named.
        """
        path = Path("/proc/sys", *name.split("."))
        with self.inside():
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

    def end_processes(self) -> None:
        """Kills what `popen` started and reaps it."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
        self._processes.clear()
