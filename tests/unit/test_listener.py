"""The HTTP listeners over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import time
from collections.abc import Callable

from edgeproxy.health import Answer, Clock, Health, ServicePortHealth
from edgeproxy.listener import Listener, ServiceHealth, routes
from edgeproxy.model import Reason
from edgeproxy.settings import Listen

LOCALHOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return int(probe.getsockname()[1])


async def get(port: int, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    """A request of a client of the standard library, in a thread of its own."""
    return await asyncio.to_thread(_get, port, path, method)


def _get(port: int, path: str, method: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(LOCALHOST, port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_routes_and_headers() -> None:
    listener = Listener(
        "health.listen", routes({"/healthz": lambda: Answer(503, b"{}", headers=(("X-A", "b"),))})
    )
    await listener.open(Listen(LOCALHOST, 0))
    (port,) = listener.ports

    response, body = await get(port, "/healthz")
    assert (response.status, body) == (503, b"{}")
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-A"] == "b"
    assert (await get(port, "/healthz", "HEAD"))[1] == b""
    assert (await get(port, "/other"))[0].status == 404
    assert (await get(port, "/healthz", "POST"))[0].status == 405
    await listener.close()


async def test_an_address_in_use_is_a_finding_until_it_is_free() -> None:
    listener = Listener("health.listen", routes({"/": lambda: Answer(200, b"ok")}), retry=0.02)
    with socket.socket() as other:
        other.bind((LOCALHOST, 0))
        other.listen()
        port = other.getsockname()[1]
        await listener.open(Listen(LOCALHOST, port))
        assert listener.finding is not None
        assert listener.finding.reason is Reason.CONFIGURATION
        assert f"health.listen: cannot listen on {LOCALHOST}:{port}" in listener.finding.message
        assert "in use" in listener.finding.message

    await until(lambda: listener.finding is None)
    assert (await get(port, "/"))[0].status == 200
    await listener.close()


async def test_it_moves_to_another_address_and_can_be_switched_off() -> None:
    listener = Listener("metrics.listen", routes({"/": lambda: Answer(200, b"ok")}))
    first, second = free_port(), free_port()
    await listener.open(Listen(LOCALHOST, first))
    await listener.open(Listen(LOCALHOST, second))

    assert listener.ports == (second,)
    with socket.socket() as probe:
        assert probe.connect_ex((LOCALHOST, first)) != 0
    await listener.open()
    assert listener.ports == ()
    with socket.socket() as probe:
        assert probe.connect_ex((LOCALHOST, second)) != 0


async def test_service_health_ports_follow_what_is_desired() -> None:
    health = Health(30.0, Clock(time.monotonic, time.time))
    services = ServiceHealth(health)
    one, two = free_port(), free_port()
    await services.sync({one: ServicePortHealth("web", "/services/web", 0)}, (LOCALHOST,))
    assert (await get(one, "/any/path"))[0].status == 503

    await services.sync({one: ServicePortHealth("web", "/services/web", 3)}, (LOCALHOST,))
    response, body = await get(one, "/")
    assert response.status == 200
    assert response.headers["X-Load-Balancing-Endpoint-Weight"] == "3"
    assert b'"localEndpoints":3' in body

    health.cordoned = True
    assert (await get(one, "/"))[0].status == 200

    await services.sync({two: ServicePortHealth("api", "/services/api", 1)})
    assert (await get(two, "/"))[0].status == 200
    with socket.socket() as probe:
        assert probe.connect_ex((LOCALHOST, one)) != 0
    await services.close()
    with socket.socket() as probe:
        assert probe.connect_ex((LOCALHOST, two)) != 0


async def test_a_service_port_in_use_is_a_finding_of_that_service() -> None:
    services = ServiceHealth(Health(30.0, Clock(time.monotonic, time.time)), retry=0.02)
    with socket.socket() as other:
        other.bind((LOCALHOST, 0))
        other.listen()
        port = other.getsockname()[1]
        await services.sync({port: ServicePortHealth("web", "/services/web", 1)}, (LOCALHOST,))
        (finding,) = services.findings
        assert finding.key == "/services/web"
        assert f"healthCheckNodePort {port} of service web" in finding.message
    await until(lambda: not services.findings)
    assert (await get(port, "/"))[0].status == 200
    await services.close()
