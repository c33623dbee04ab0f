"""Echo servers that say who they are and whom they saw, and clients for them.

One thread serves any number of backends, whatever their namespaces: a socket stays in the
namespace it was made in. A server answers each line (TCP, SCTP) or datagram (UDP) with one line

    <name> <source address> <source port> <own address> <own port> <the line>

and a line that is an HTTP request with an HTTP/1.0 answer of "<name> <source address>".
"""

from __future__ import annotations

import contextlib
import enum
import errno
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.lab.namespace import Host

TIMEOUT = 3.0
_ANY = "::"
_INTERFACE = struct.Struct("=16sI")  # struct in6_pktinfo


@dataclass(frozen=True)
class Answer:
    """What an echo server said: its name, whom it saw, where the packet arrived, the text."""

    backend: str
    source: str
    source_port: int
    local: str
    local_port: int
    text: str = ""


class Failure(enum.Enum):
    """How a request failed; compares unequal to every :class:`Answer`."""

    REFUSED = "refused"
    TIMED_OUT = "timed out"
    UNREACHABLE = "unreachable"
    RESET = "reset"


@dataclass
class Listener:
    """One listening socket of a backend. `connections` counts what it accepted, `requests` lines."""

    name: str
    server: socket.socket
    forget: Callable[[socket.socket], None]
    connections: int = 0
    requests: int = 0

    def close(self) -> None:
        """Stops listening: the port refuses from now on; connections that are open stay."""
        self.forget(self.server)


@dataclass
class _Peer:
    """One accepted connection."""

    listener: Listener
    connection: socket.socket
    received: bytes = field(default=b"")


class EchoServers:
    """The servers of a test; all are closed at the end of the `with` block."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._wakened = socket.socketpair()
        self._selector.register(self._wakened, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="echo servers", daemon=True)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def listen(
        self,
        host: Host,
        name: str = "",
        *,
        tcp: Iterable[int] = (),
        udp: Iterable[int] = (),
        sctp: Iterable[int] = (),
        address: str = _ANY,
    ) -> list[Listener]:
        """Opens ports on a machine, on all its addresses of both families by default.

        name: what the server calls itself; by default the machine's name.

        Raises:
            OSError: the port is taken, or the kernel has no SCTP.
        """
        listeners = []
        kinds = (
            (tcp, socket.SOCK_STREAM, 0),
            (udp, socket.SOCK_DGRAM, 0),
            (sctp, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
        )
        with host.inside():
            for ports, kind, protocol in kinds:
                for port in ports:
                    listeners.append(
                        Listener(name or host.name, _bound(kind, protocol, address, port), self._forget)
                    )
        with self._lock:
            for listener in listeners:
                self._selector.register(listener.server, selectors.EVENT_READ, listener)
        return listeners

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wakened:
                    return
                try:
                    self._react(key.data)
                except OSError:
                    self._forget(key.fileobj)  # type: ignore[arg-type]

    def _react(self, ready: Listener | _Peer) -> None:
        if isinstance(ready, _Peer):
            self._answer_lines(ready)
        elif ready.server.type == socket.SOCK_DGRAM:
            _answer_datagram(ready)
        else:
            connection, _ = ready.server.accept()
            ready.connections += 1
            with self._lock:
                self._selector.register(connection, selectors.EVENT_READ, _Peer(ready, connection))

    def _answer_lines(self, peer: _Peer) -> None:
        data = peer.connection.recv(1 << 16)
        if not data:
            self._forget(peer.connection)
            return
        *lines, peer.received = (peer.received + data).split(b"\n")
        source, local = peer.connection.getpeername(), peer.connection.getsockname()
        for line in lines:
            peer.listener.requests += 1
            if line.startswith((b"GET ", b"HEAD ")):
                peer.connection.sendall(_web_page(f"{peer.listener.name} {_plain(source[0])}\n"))
                peer.connection.shutdown(socket.SHUT_WR)
                self._forget(peer.connection)
                return
            peer.connection.sendall(_answer(peer.listener.name, source, local, line))

    def _forget(self, gone: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError), self._lock:
            self._selector.unregister(gone)
        gone.close()


def _bound(kind: int, protocol: int, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, kind, protocol)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        server.bind((address, port))
        if kind == socket.SOCK_STREAM:
            server.listen(1024)
    except OSError:
        server.close()
        raise
    return server


def _answer_datagram(listener: Listener) -> None:
    data, extra, _, source = listener.server.recvmsg(1 << 16, 256)
    listener.requests += 1
    local = listener.server.getsockname()
    reply = []
    for level, kind, value in extra:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            # The answer must come from the address that was asked, on a machine with several, too.
            packed, _ = _INTERFACE.unpack(value)
            local = (socket.inet_ntop(socket.AF_INET6, packed), local[1])
            reply.append((level, kind, _INTERFACE.pack(packed, 0)))
    listener.server.sendmsg([_answer(listener.name, source, local, data.rstrip(b"\n"))], reply, 0, source)


def _answer(name: str, source: tuple[str, int], local: tuple[str, int], text: bytes) -> bytes:
    words = (name, _plain(source[0]), str(source[1]), _plain(local[0]), str(local[1]))
    return " ".join(words).encode() + b" " + text + b"\n"


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def _web_page(body: str) -> bytes:
    return (
        f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )


class Conversation:
    """A connection that stays open: say a line, hear the answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Our own port."""
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        self._socket.close()

    def say(self, text: str = "hello", timeout: float = TIMEOUT) -> Answer | Failure:
        """Sends a line and waits for its answer."""
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(text.encode() + b"\n")
            while b"\n" not in self._received:
                data = self._socket.recv(4096)
                if not data:
                    return Failure.RESET
                self._received += data
        except OSError as error:
            return _failure(error)
        line, _, self._received = self._received.partition(b"\n")
        return _parse(line)


def converse(
    host: Host,
    address: str,
    port: int,
    *,
    source_port: int = 0,
    timeout: float = TIMEOUT,
    sctp: bool = False,
) -> Conversation | Failure:
    """Opens a connection from a machine; also says how that failed."""
    connection = _client(host, address, socket.SOCK_STREAM, source_port, socket.IPPROTO_SCTP if sctp else 0)
    connection.settimeout(timeout)
    try:
        connection.connect((address, port))
    except OSError as error:
        connection.close()
        return _failure(error)
    return Conversation(connection)


def ask_tcp(
    host: Host,
    address: str,
    port: int,
    *,
    source_port: int = 0,
    timeout: float = TIMEOUT,
    text: str = "hello",
) -> Answer | Failure:
    """One request over a TCP connection of its own, from a machine. timeout: seconds, for each step."""
    conversation = converse(host, address, port, source_port=source_port, timeout=timeout)
    if isinstance(conversation, Failure):
        return conversation
    with conversation:
        return conversation.say(text, timeout)


def ask_sctp(
    host: Host,
    address: str,
    port: int,
    *,
    source_port: int = 0,
    timeout: float = TIMEOUT,
    text: str = "hello",
) -> Answer | Failure:
    """One request over an SCTP association of its own."""
    conversation = converse(host, address, port, source_port=source_port, timeout=timeout, sctp=True)
    if isinstance(conversation, Failure):
        return conversation
    with conversation:
        return conversation.say(text, timeout)


def ask_udp(
    host: Host,
    address: str,
    port: int,
    *,
    source_port: int = 0,
    timeout: float = TIMEOUT,
    text: str = "hello",
) -> Answer | Failure:
    """One datagram and its answer. A socket that is connected hears ICMP errors: REFUSED."""
    with _client(host, address, socket.SOCK_DGRAM, source_port) as client:
        client.settimeout(timeout)
        try:
            client.connect((address, port))
            client.send(text.encode())
            return _parse(client.recv(4096).rstrip(b"\n"))
        except OSError as error:
            return _failure(error)


def _client(host: Host, address: str, kind: int, source_port: int, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.inside():
        client = socket.socket(family, kind, protocol)
    if source_port:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("", source_port))
    return client


def _parse(line: bytes) -> Answer:
    backend, source, source_port, local, local_port, text = line.decode().split(" ", 5)
    return Answer(backend, source, int(source_port), local, int(local_port), text)


def _failure(error: OSError) -> Failure:
    """Raises the error again if it says something about the test and not about the network."""
    if isinstance(error, TimeoutError):
        return Failure.TIMED_OUT
    match error.errno:
        case errno.ECONNREFUSED:
            return Failure.REFUSED
        case errno.ECONNRESET | errno.EPIPE | errno.ECONNABORTED:
            return Failure.RESET
        case errno.EHOSTUNREACH | errno.ENETUNREACH | errno.EACCES | errno.EPERM:
            return Failure.UNREACHABLE
        case errno.ETIMEDOUT:
            return Failure.TIMED_OUT
    raise error
