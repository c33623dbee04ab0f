"""The HTTP listeners: health, metrics, and one per healthCheckNodePort.

An address that cannot be bound is retried (another process may let go of it) and is a finding meanwhile;
it never stops the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from edgeproxy.health import (
    NOT_FOUND,
    PLAIN,
    Answer,
    Health,
    ServicePortHealth,
    port_changes,
    service_answer,
)
from edgeproxy.http_server import HttpServer, Respond
from edgeproxy.model import Finding, Reason
from edgeproxy.settings import Listen

log = logging.getLogger(__name__)

RETRY = 5.0
EVERY_ADDRESS = ("",)
"""Hosts to listen on: every local address of both families."""


def routes(table: Mapping[str, Callable[[], Answer]]) -> Respond:
    """Answers by path; any other path is 404."""

    def respond(path: str) -> Answer:
        found = table.get(path)
        return found() if found else Answer(NOT_FOUND, b"not found\n", PLAIN)

    return respond


class Listener:
    """One HTTP server on one port of one or more hosts, kept open until :meth:`close`.

    finding: why it is not open at the moment, or None.
    """

    def __init__(self, purpose: str, respond: Respond, *, key: str = "", retry: float = RETRY) -> None:
        """`purpose` names it in messages (`health.listen`); `key`: the record it belongs to, if any."""
        self.finding: Finding | None = None
        self._purpose = purpose
        self._respond = respond
        self._key = key
        self._retry = retry
        self._servers: list[HttpServer] = []
        self._retrying: asyncio.Task[None] | None = None
        self._listens: tuple[Listen, ...] = ()
        self.ports: tuple[int, ...] = ()

    async def open(self, *listens: Listen) -> None:
        """Listen on these addresses instead of the present ones; on failure go on trying in the background."""
        if listens == self._listens:
            return
        await self.close()
        self._listens = listens
        if listens and not await self._bind():
            self._retrying = asyncio.create_task(self._bind_later(), name=f"bind {self._purpose}")

    async def close(self) -> None:
        """Stop listening."""
        if self._retrying is not None:
            self._retrying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._retrying
            self._retrying = None
        await self._drop()
        self._listens = ()
        self.finding = None

    async def _drop(self) -> None:
        self.ports = ()
        servers, self._servers = self._servers, []
        for server in servers:
            await server.close()

    async def _bind(self) -> bool:
        ports = []
        try:
            for listen in self._listens:
                server = HttpServer(self._respond)
                ports.append(await server.open(listen.host, listen.port))
                self._servers.append(server)
        except OSError as error:
            await self._drop()
            self._failed(listen, error)
            return False
        self.ports = tuple(ports)
        self.finding = None
        log.info("%s: listening on %s", self._purpose, ", ".join(map(str, self._listens)))
        return True

    async def _bind_later(self) -> None:
        while True:
            await asyncio.sleep(self._retry)
            if await self._bind():
                return

    def _failed(self, listen: Listen, error: OSError) -> None:
        message = (
            f"{self._purpose}: cannot listen on {listen}: {error.strerror or error}; "
            f"trying again every {self._retry:g} s"
        )
        if self.finding is None:
            log.warning("%s", message)
        self.finding = Finding(
            self._key, 0, "", Reason.REFUSED if self._key else Reason.CONFIGURATION, message
        )


class ServiceHealth:
    """The healthCheckNodePort listeners of all services: one port each, any path."""

    def __init__(self, health: Health, *, retry: float = RETRY) -> None:
        self._health = health
        self._retry = retry
        self._desired: Mapping[int, ServicePortHealth] = {}
        self._hosts: tuple[str, ...] = EVERY_ADDRESS
        self._listeners: dict[int, Listener] = {}

    async def sync(
        self, desired: Mapping[int, ServicePortHealth], hosts: tuple[str, ...] = EVERY_ADDRESS
    ) -> None:
        """Make the open ports those of `desired`; counts of ports that stay change at once.

        hosts: addresses to listen on.
        """
        gone, added = port_changes(self._desired, desired)
        if hosts != self._hosts:
            gone, added = tuple(self._desired), tuple(desired)
            self._hosts = hosts
        self._desired = dict(desired)
        for port in gone:
            await self._listeners.pop(port).close()
        for port in added:
            service = desired[port]
            purpose = f"healthCheckNodePort {port} of service {service.service}"
            listener = Listener(purpose, self._answers(port), key=service.key, retry=self._retry)
            self._listeners[port] = listener
            await listener.open(*(Listen(host, port) for host in hosts))

    async def close(self) -> None:
        """Close every port."""
        await self.sync({})

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Ports that could not be opened."""
        return tuple(listener.finding for listener in self._listeners.values() if listener.finding)

    def _answers(self, port: int) -> Respond:
        return lambda path: service_answer(self._desired[port], self._health.is_healthy())
