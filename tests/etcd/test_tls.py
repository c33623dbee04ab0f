"""TLS: what works, and what an operator reads when it does not."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from edgeproxy.etcd.errors import NotEtcd, StoreError, TlsRefused, Unreachable
from edgeproxy.etcd.settings import Timing

from .conftest import Starter
from .faults import FaultProxy
from .follower import Follower
from .server import EtcdServer, Tls, until
from .test_outages import settled


async def refusal(server: EtcdServer, **changes: object) -> StoreError:
    """What a read with these settings ends in."""
    try:
        connection = server.connection(**changes)
    except StoreError as error:
        return error
    try:
        await connection.get(b"/services/")
    except StoreError as error:
        return error
    finally:
        await connection.close()
    raise AssertionError("the read was answered")


def listening(server: EtcdServer) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.client_port)) == 0


async def test_mutual_tls_follows_and_resumes(cluster: Starter, tls: Tls) -> None:
    server = (await cluster(tls=tls))[0]
    server.etcdctl("put", "/services/web", "1")
    async with Follower(server.settings()) as follower:
        await settled(follower, server)
        server.kill()
        await until(lambda: follower.health.endpoint is None, 5, "the loss is noticed")
        server.start()
        await server.ready()
        server.etcdctl("put", "/services/web", "2")
        await settled(follower, server)
        assert follower.health.resumes == 1


async def test_refusals_of_a_mutual_tls_server(cluster: Starter, tls: Tls, certificates: Path) -> None:
    server = (await cluster(tls=tls))[0]
    missing = await refusal(server, cert_file=None, key_file=None)
    assert isinstance(missing, TlsRefused)
    assert "client certificate" in str(missing)
    assert "etcd.cert_file" in str(missing)
    wrong_ca = await refusal(server, ca_file=certificates / "other-ca.pem")
    assert isinstance(wrong_ca, TlsRefused)
    assert "not signed by a CA in ca_file" in str(wrong_ca)
    stranger = await refusal(
        server, cert_file=certificates / "other-client.pem", key_file=certificates / "other-client.key"
    )
    assert isinstance(stranger, TlsRefused)
    assert "client certificate" in str(stranger)
    plain = await refusal(server, endpoints=(server.url.replace("https", "http"),))
    assert isinstance(plain, Unreachable)
    assert "https://" in str(plain)


async def test_a_certificate_for_another_name(cluster: Starter, tls: Tls, certificates: Path) -> None:
    other = replace(tls, certificate=certificates / "name-server.pem", key=certificates / "name-server.key")
    server = EtcdServer(certificates, name="named", tls=replace(other, mutual=False))
    server.start()
    try:
        await until(lambda: server.process is not None and listening(server), 10, "the member listens")
        error = await refusal(server)
        assert isinstance(error, TlsRefused)
        assert "for another name" in str(error)
    finally:
        server.kill()
        server.wipe()


async def test_files_that_cannot_be_used(server: EtcdServer, certificates: Path, tmp_path: Path) -> None:
    https = (server.url.replace("http", "https"),)
    client = {"cert_file": certificates / "client.pem", "key_file": certificates / "client.key"}
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for changes, words in (
        ({"ca_file": tmp_path / "absent.pem"}, ("etcd.ca_file", "absent.pem", "No such file")),
        ({"ca_file": broken}, ("etcd.ca_file", "broken.pem", "cannot be used")),
        (client | {"key_file": certificates / "server.key"}, ("etcd.cert_file", "KEY_VALUES_MISMATCH")),
        ({"cert_file": certificates / "client.pem"}, ("etcd.cert_file", "etcd.key_file", "together")),
    ):
        error = await refusal(server, endpoints=https, **changes)
        assert isinstance(error, TlsRefused)
        assert all(word in str(error) for word in words), str(error)


async def test_tls_asked_of_a_server_without(server: EtcdServer, certificates: Path) -> None:
    error = await refusal(
        server, endpoints=(server.url.replace("http", "https"),), ca_file=certificates / "ca.pem"
    )
    assert isinstance(error, Unreachable)
    assert "use http://" in str(error)


async def test_a_refusing_endpoint_does_not_keep_from_a_good_one(
    cluster: Starter, tls: Tls, certificates: Path
) -> None:
    server = (await cluster(tls=tls))[0]
    proxy = FaultProxy(server.client_port)
    await proxy.start()
    # The certificate is for 127.0.0.1; by the name localhost it must not be accepted.
    wrong = f"https://localhost:{proxy.port}"
    timing = Timing(backoff_first=0.05, refused=600)
    try:
        settings = server.settings(endpoints=(wrong, server.url))
        async with Follower(settings, timing, chance=lambda: 0.5) as follower:
            await until(follower.following, 5, "following at the good endpoint")
            assert follower.health.endpoint == server.url
            assert follower.health.connects == 2
    finally:
        await proxy.close()


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 505 No\r\n\r\n", b"220 mail.example.org ESMTP\r\n"])
async def test_something_that_is_not_etcd(folder: Path, greeting: bytes) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        error = await refusal(EtcdServer(folder), endpoints=(f"http://127.0.0.1:{port}",))
    assert isinstance(error, NotEtcd)
    assert "check etcd.endpoints" in str(error)
