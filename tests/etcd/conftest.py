"""Fixtures of the fault tests: members in a folder of their own, certificates, one event loop for all."""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from .faults import FaultProxy
from .server import EtcdServer, Tls, members

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # gRPC's poller is shared by all loops of a process: one loop, as in the daemon.
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a tmpfs where there is one: etcd syncs at every write."""
    memory = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="edgeproxy-etcd-", dir=memory if memory.is_dir() else None))
    yield base
    shutil.rmtree(base)


Starter = Callable[..., Awaitable[list[EtcdServer]]]


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(folder: Path) -> AsyncIterator[Starter]:
    """`await cluster(3, flags=[...])`: running members, killed at the end."""
    started: list[EtcdServer] = []

    async def start(
        count: int = 1, flags: list[str] | None = None, tls: Tls | None = None
    ) -> list[EtcdServer]:
        servers = members(folder, count, flags or [])
        for server in servers:
            server.tls = tls
            server.start()
            started.append(server)
        for server in servers:
            await server.ready()
        return servers

    yield start
    for server in started:
        server.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def server(cluster: Starter) -> EtcdServer:
    """One running member."""
    return (await cluster())[0]


@pytest_asyncio.fixture(loop_scope="session")
async def faulty(server: EtcdServer) -> AsyncIterator[FaultProxy]:
    """A fault proxy in front of `server`."""
    proxy = FaultProxy(server.client_port)
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="edgeproxy")
    return caplog


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates() -> Iterator[Path]:
    """ca, server (127.0.0.1), client; other-ca, other-client, and name-server (example.org): .pem and .key."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for ca in ("ca", "other-ca"):
            _openssl(
                *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-days", "2", "-subj", f"/CN={ca}"),
                *("-keyout", str(folder / f"{ca}.key"), "-out", str(folder / f"{ca}.pem")),
            )
        for leaf, ca, san in (
            ("server", "ca", "IP:127.0.0.1"),
            ("name-server", "ca", "DNS:example.org"),
            ("client", "ca", "DNS:client"),
            ("other-client", "other-ca", "DNS:client"),
        ):
            _leaf(folder, leaf, ca, san)
        yield folder


def _leaf(folder: Path, leaf: str, ca: str, san: str) -> None:
    request, extensions = folder / f"{leaf}.csr", folder / f"{leaf}.ext"
    extensions.write_text(f"subjectAltName={san}\n")
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", f"/CN={leaf}", "-keyout", str(folder / f"{leaf}.key"), "-out", str(request)),
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(folder / f"{ca}.pem")),
        *("-CAkey", str(folder / f"{ca}.key"), "-CAcreateserial", "-days", "2"),
        *("-extfile", str(extensions), "-out", str(folder / f"{leaf}.pem")),
    )


@pytest.fixture
def tls(certificates: Path) -> Tls:
    return Tls(
        ca=certificates / "ca.pem",
        certificate=certificates / "server.pem",
        key=certificates / "server.key",
        client_certificate=certificates / "client.pem",
        client_key=certificates / "client.key",
        mutual=True,
    )
