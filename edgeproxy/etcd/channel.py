"""One gRPC channel to one endpoint: options, TLS, calls and streams. The only module that imports grpc.

Everything raised here is a StoreError (or the caller's own cancellation).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import grpc.aio  # type: ignore[import-untyped]

from edgeproxy.etcd.endpoint import Endpoint
from edgeproxy.etcd.errors import StoreError, StreamEnded, TlsRefused, Unreachable, translate
from edgeproxy.etcd.messages import Message
from edgeproxy.etcd.settings import EtcdSettings, Timing

RECEIVE_LIMIT = 64 * 1024 * 1024

Metadata = Sequence[tuple[str, str]]
Reply = TypeVar("Reply", bound=Message)
Answer = TypeVar("Answer")


def options(timing: Timing) -> list[tuple[str, int]]:
    """Channel arguments; names and defaults: grpc's include/grpc/impl/channel_arg_names.h.

    keepalive_timeout_ms alone does not find a hung server: since chttp2 was reworked it sets
    TCP_USER_TIMEOUT, which the peer's kernel satisfies. The answer to a ping is governed by
    grpc.http2.ping_timeout_ms, one minute by default.
    """
    return [
        ("grpc.max_receive_message_length", RECEIVE_LIMIT),
        ("grpc.keepalive_time_ms", int(timing.keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(timing.ping_timeout * 1000)),
        ("grpc.http2.ping_timeout_ms", int(timing.ping_timeout * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 5000),
        # A channel of its own per attempt: files and names are read anew, no state is inherited.
        ("grpc.use_local_subchannel_pool", 1),
    ]


class Channel:
    """Calls to one endpoint. Opening it connects nothing yet; close it when done."""

    def __init__(self, endpoint: Endpoint, settings: EtcdSettings, timing: Timing) -> None:
        """Reads the TLS files. Raises TlsRefused where one of them cannot be used."""
        self.endpoint = endpoint
        if endpoint.tls:
            self._channel = grpc.aio.secure_channel(endpoint.target, _credentials(settings), options(timing))
        else:
            self._channel = grpc.aio.insecure_channel(endpoint.target, options(timing))

    async def unary(
        self, method: str, request: Message, reply: type[Reply], metadata: Metadata, deadline: float
    ) -> Reply:
        """One call, e.g. `/etcdserverpb.KV/Range`; `deadline` in seconds."""
        call = self._channel.unary_unary(
            method, request_serializer=_serialise, response_deserializer=reply.FromString
        )
        try:
            answer: Reply = await call(request, timeout=deadline, metadata=tuple(metadata))
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None
        except asyncio.CancelledError:
            # Closing the channel cancels its calls, which must not look like a cancelled task.
            if _cancelled():
                raise
            raise Unreachable(f"etcd at {self.endpoint}: the connection was closed") from None
        return answer

    def stream(self, method: str, reply: type[Reply], metadata: Metadata) -> Stream[Reply]:
        """A stream in both directions, e.g. `/etcdserverpb.Watch/Watch`."""
        call = self._channel.stream_stream(
            method, request_serializer=_serialise, response_deserializer=reply.FromString
        )
        return Stream(self, call(metadata=tuple(metadata)))

    async def close(self) -> None:
        """Ends every call at once."""
        await self._channel.close()

    def _translated(self, error: grpc.aio.AioRpcError) -> StoreError:
        return translate(error.code().name, error.details() or "", str(self.endpoint))


class Stream(Generic[Reply]):
    """write() and read() instead of a request iterator: that one leaves tasks behind when cancelled."""

    def __init__(self, channel: Channel, call: grpc.aio.StreamStreamCall) -> None:
        self._channel = channel
        self._call = call

    async def write(self, request: Message) -> None:
        """Send one message."""
        await self._guarded(self._call.write(request))

    async def read(self) -> Reply:
        """The next message; an end of the stream, even a clean one, raises."""
        answer = await self._guarded(self._call.read())
        if answer is grpc.aio.EOF:
            raise StreamEnded(f"etcd at {self._channel.endpoint}: the watch stream ended")
        reply: Reply = answer
        return reply

    def cancel(self) -> None:
        """End the stream; no further reads."""
        self._call.cancel()

    async def _guarded(self, operation: Awaitable[Answer]) -> Answer:
        try:
            return await operation
        except grpc.aio.AioRpcError as error:
            raise self._channel._translated(error) from None
        except asyncio.InvalidStateError:
            # "RPC already finished": the reason is in the call's status.
            code, details = await self._call.code(), await self._call.details()
            raise translate(code.name, details or "", str(self._channel.endpoint)) from None
        except asyncio.CancelledError:
            if _cancelled():
                raise
            raise StreamEnded(f"etcd at {self._channel.endpoint}: the stream was closed") from None


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _credentials(settings: EtcdSettings) -> grpc.ChannelCredentials:
    """TLS material read from the files now, checked by OpenSSL, whose complaints are readable."""
    context = ssl.create_default_context()
    roots = certificate = key = None
    ca_file = settings.ca_file or _system_roots()
    if ca_file is not None:
        roots = _read(ca_file, "etcd.ca_file")
        _checked("etcd.ca_file", ca_file, lambda: context.load_verify_locations(ca_file))
    cert_file, key_file = settings.cert_file, settings.key_file
    if cert_file is not None and key_file is not None:
        certificate, key = _read(cert_file, "etcd.cert_file"), _read(key_file, "etcd.key_file")
        _checked("etcd.cert_file", cert_file, lambda: context.load_cert_chain(cert_file, key_file))
    elif cert_file is not None or key_file is not None:
        raise TlsRefused("etcd.cert_file and etcd.key_file are needed together; only one is set")
    return grpc.ssl_channel_credentials(roots, key, certificate)


def _checked(name: str, path: Path, load: Callable[[], None]) -> None:
    try:
        load()
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise TlsRefused(f"{name} {path} cannot be used: {reason}") from None


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsRefused(f"{name} {path} cannot be read: {error.strerror}") from None


def _system_roots() -> Path | None:
    """The host's own trust store; None leaves it to the list inside grpcio."""
    found = ssl.get_default_verify_paths().cafile
    path = Path(found) if found else Path("/etc/ssl/certs/ca-certificates.crt")
    return path if path.is_file() else None
