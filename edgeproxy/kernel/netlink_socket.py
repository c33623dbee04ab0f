"""A netlink socket: datagrams to the kernel and its answers.

The kernel works off a request inside `send`: when that returns, every answer is already queued
(`netlink_unicast_kernel`), and the later parts of a dump are made inside the `recv` that takes
the part before. So nothing here waits: an answer that is not there after the queue is empty
never comes, and is an :class:`~edgeproxy.kernel.netlink.OverrunError`.

A socket belongs to the network namespace in which it was made, wherever the thread goes later.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import select
import socket
import threading
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from edgeproxy.kernel.netlink import Control, Message, OverrunError, RefusedError, answer, messages

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NETLINK_GENERIC = 16

_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_CAP_ACK = 10
_EXT_ACK = 11
# The forced forms need CAP_NET_ADMIN and pass the limits of net.core.[rw]mem_max.
_BUFFER_OPTIONS = ((socket.SO_RCVBUF, 33), (socket.SO_SNDBUF, 32))

_FINAL = (Control.ERROR, Control.DONE)

_BUFFER = 8 << 20
# Dumps are made in pieces of the largest size ever passed to recv, at most 32 KiB (af_netlink.c).
_READ = 256 << 10


class Closing(abc.ABC):
    """What holds a descriptor of the kernel: closed by `close` or at the end of a `with` block."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close it; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NetlinkUser(Closing):
    """What owns one netlink socket, `_netlink`."""

    _netlink: NetlinkSocket

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._netlink.close()


class NetlinkSocket(Closing):
    """One netlink socket.

    protocol: NETLINK_ROUTE, NETLINK_NETFILTER or NETLINK_GENERIC.
    groups: multicast groups to join; a socket that listens should not ask, the answers mix.
    buffer: bytes of receive and of send buffer; less where the kernel does not permit it.

    Raises:
        OSError: no such protocol in this kernel, no such group.
    """

    def __init__(self, protocol: int, *, groups: Sequence[int] = (), buffer: int = _BUFFER) -> None:
        self._sequence, self._numbering = 0, threading.Lock()
        self._received = bytearray(_READ)
        self._view = memoryview(self._received)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setblocking(False)
            for option, forced in _BUFFER_OPTIONS:
                try:
                    self._socket.setsockopt(socket.SOL_SOCKET, forced, buffer)
                except PermissionError:
                    self._socket.setsockopt(socket.SOL_SOCKET, option, buffer)
            for option in (_CAP_ACK, _EXT_ACK):
                with contextlib.suppress(OSError):  # kernels before 4.3 and 4.12
                    self._socket.setsockopt(_SOL_NETLINK, option, 1)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor, for `loop.add_reader`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._socket.close()

    @property
    def receive_buffer(self) -> int:
        """Bytes of receive buffer granted, as the kernel accounts them (with its overhead)."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    @property
    def send_buffer(self) -> int:
        """Bytes of send buffer granted: no datagram may be longer."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def sequences(self, count: int = 1) -> range:
        """The next `count` sequence numbers; never 0, which marks notifications. From any thread."""
        with self._numbering:
            if self._sequence + count >= 1 << 32:
                self._sequence = 0
            first = self._sequence + 1
            self._sequence += count
        return range(first, first + count)

    def send(self, datagram: bytes | bytearray) -> None:
        """Send one datagram of one or more messages; the kernel has worked it off on return.

        Raises:
            OSError: EMSGSIZE longer than the send buffer, ENOBUFS no memory.
        """
        sent = self._socket.send(datagram)
        if sent != len(datagram):
            raise OSError(errno.EMSGSIZE, f"netlink took {sent} of {len(datagram)} bytes")

    def receive(self) -> list[Message]:
        """The messages of the next datagram, [] if none is queued. Never blocks.

        Raises:
            OverrunError: the queue was full, at least one datagram was dropped.
        """
        return list(messages(self.read()))

    def read(self) -> bytes:
        """The next datagram, b"" if none is queued. Never blocks.

        Raises:
            OverrunError: as :meth:`receive`.
        """
        try:
            length = self._socket.recv_into(self._received)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise OverrunError("netlink receive queue overrun: answers are lost") from None
            raise
        return bytes(self._view[:length])

    def drain(self) -> None:
        """Throw away everything queued, unfinished dumps and overruns included."""
        while True:
            try:
                if not self.read():
                    return
            except OverrunError:
                continue

    def wait(self, seconds: float) -> bool:
        """Wait until something is queued; whether it is. For scripts and tests: asyncio uses fileno."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def exchange(self, datagram: bytes | bytearray, awaited: Collection[int]) -> list[Message]:
        """Send, then gather every message up to the final answers (NLMSG_ERROR or NLMSG_DONE) to `awaited`.

        Errors are among the messages, not raised: a batch has many. On an overrun the queue is
        emptied, so that the next exchange starts clean.

        Raises:
            OverrunError: an awaited answer is lost.
            OSError: as :meth:`send`.
        """
        pending = set(awaited)
        gathered: list[Message] = []
        self.send(datagram)
        try:
            while pending:
                received = self.receive()
                if not received:
                    raise OverrunError(f"the kernel left {len(pending)} netlink requests unanswered")
                for reply in received:
                    if reply.type in _FINAL:
                        pending.discard(reply.sequence)
                gathered += received
        except OverrunError:
            self.drain()
            raise
        return gathered

    def request(self, datagram: bytes, sequence: int, doing: str) -> list[Message]:
        """One request that must succeed: its messages without the final answer.

        doing: what is being done, for the error message.

        Raises:
            RefusedError: the kernel answered with an error.
            OverrunError, OSError: as :meth:`exchange`.
        """
        replies = []
        for reply in self.exchange(datagram, (sequence,)):
            said = answer(reply)
            if said is None:
                replies.append(reply)
            elif said.errno and reply.sequence == sequence:
                raise RefusedError(doing, said)
        return replies
