"""The daemon: assembles the parts, follows signals, and ends without touching traffic."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from pathlib import Path

import msgspec

from edgeproxy import __version__, systemd
from edgeproxy.catalog import Catalog
from edgeproxy.config import ConfigurationError, etcd_settings, load
from edgeproxy.control_server import ControlServer
from edgeproxy.etcd.store import Store
from edgeproxy.execution import Wires
from edgeproxy.frame import FrameKeeper
from edgeproxy.health import Clock, Health, ServicePortHealth
from edgeproxy.hostfacts import read
from edgeproxy.keeper import Keeper
from edgeproxy.kernel.ipvs_entries import Timeouts
from edgeproxy.kernel.netlink import NetlinkError
from edgeproxy.listener import Listener, ServiceHealth, routes
from edgeproxy.loop import Loop
from edgeproxy.metrics import Metrics
from edgeproxy.model import Finding, Reason, SetName
from edgeproxy.ownership import OwnershipLog, scope
from edgeproxy.reconcile import Reconciler
from edgeproxy.settings import SECTIONS, Settings, restart_needed
from edgeproxy.state import Lock, is_cordoned
from edgeproxy.status import KernelCounts, Status, StoreStatus
from edgeproxy.surroundings import survey

log = logging.getLogger(__name__)

NODE_PORT_SETS = frozenset({SetName.NODE_PORTS4, SetName.NODE_PORTS6})


def run(settings: Settings, path: Path) -> int:
    """Run until SIGTERM or SIGINT; the exit code.

    Raises:
        StateError: the state directory cannot be used, or another daemon holds it.
    """
    with Lock.acquire(settings.state.dir):
        try:
            wires = Wires.open()
        except (NetlinkError, OSError) as error:
            log.critical("cannot start: %s", error)
            return 1
        try:
            return asyncio.run(Daemon(settings, path, wires).serve())
        finally:
            wires.close()


class Daemon:
    """One running daemon. Needs the lock of its state directory and a running event loop."""

    def __init__(self, settings: Settings, path: Path, wires: Wires) -> None:
        self._settings = settings
        self._path = path
        self._wires = wires
        self._started = time.monotonic()
        self._not_reloaded: tuple[Finding, ...] = ()
        directory = settings.state.dir
        self._health = Health(
            settings.proxy.resync,
            Clock(time.monotonic, time.time),
            cordoned=is_cordoned(directory),
        )
        keeper = Keeper(directory, settings.etcd.prefix)
        kept = keeper.read()
        self._store = Store(etcd_settings(settings), ledger=kept.ledger if kept else None)
        self._reconciler = Reconciler(
            Catalog(settings.etcd.prefix),
            survey(settings, read(wires.routes)),
            wires,
            OwnershipLog(directory, scope()),
            FrameKeeper(wires.nft, directory),
            time.monotonic,
        )
        self._metrics = Metrics(self._status, lambda: self._store.health, time.monotonic)
        self._service_health = ServiceHealth(self._health)
        self._loop = Loop(
            settings,
            self._store,
            self._reconciler,
            wires,
            self._health,
            self._metrics,
            self._after_sync,
            keeper,
            kept,
        )
        self._health_listener = Listener(
            "health.listen",
            routes(
                {
                    "/healthz": lambda: self._metrics.healthz(self._health.healthz()),
                    "/livez": lambda: self._metrics.livez(self._health.livez()),
                    "/readyz": self._health.readyz,
                }
            ),
        )
        self._metrics_listener = Listener(
            "metrics.listen", routes({"/metrics": self._metrics.page, "/healthz": self._metrics.alive})
        )
        self._control = ControlServer(
            directory,
            {
                "status": self._status,
                "cordon": lambda: self._cordon(True),
                "uncordon": lambda: self._cordon(False),
            },
        )

    async def serve(self) -> int:
        """Serve until told to stop; the exit code. Traffic goes on afterwards."""
        log.info("edgeproxy %s on node %s", __version__, self._settings.node.name)
        self._set_timeouts()
        await self._control.start()
        await self._listen()
        events = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            events.add_signal_handler(number, self._loop.stop)
        events.add_signal_handler(signal.SIGHUP, self._loop.request_reload, self._reload)
        store = asyncio.create_task(self._store.run(), name="store")
        store.add_done_callback(self._store_ended)
        try:
            await self._loop.run()
        finally:
            systemd.stopping()
            store.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await store
            await self._control.close()
            await self._service_health.close()
            await self._health_listener.close()
            await self._metrics_listener.close()
        log.info("stopped; virtual servers and node ports stay in the kernel, traffic goes on")
        return 0

    def _store_ended(self, task: asyncio.Task[None]) -> None:
        """The store's task never ends by itself: if it does, a restart is the best that can be done."""
        if not task.cancelled() and task.exception() is not None:
            log.critical("the store client failed", exc_info=task.exception())
            self._loop.stop()

    async def _listen(self) -> None:
        for listener, listen in (
            (self._health_listener, self._settings.health.listen),
            (self._metrics_listener, self._settings.metrics.listen),
        ):
            await listener.open(*([listen] if listen else []))

    def _set_timeouts(self) -> None:
        ipvs = self._settings.ipvs
        wanted = Timeouts(ipvs.tcp_timeout or 0, ipvs.tcp_fin_timeout or 0, ipvs.udp_timeout or 0)
        if wanted == Timeouts():
            return
        try:
            self._wires.ipvs.set_timeouts(wanted)
        except NetlinkError as error:
            log.error("IPVS timeouts are left as they are: %s", error)

    async def _after_sync(self) -> None:
        """Open and close the health check ports of services."""
        checks = self._reconciler.health_checks()
        prefix = self._settings.etcd.prefix
        wanted = {
            check.port: ServicePortHealth(name, prefix + name, check.local_endpoints)
            for name, check in checks.items()
        }
        await self._service_health.sync(wanted, self._reconciler.health_hosts)

    async def _reload(self) -> None:
        """Read the configuration again; a bad one changes nothing."""
        systemd.reloading()
        try:
            new = load(self._path)
        except ConfigurationError as error:
            for problem in error.problems:
                log.error("configuration not reloaded: %s: %s", error.source, problem)
            self._not_reloaded = tuple(
                Finding("", 0, problem.where, Reason.CONFIGURATION, f"not reloaded: {problem.message}")
                for problem in error.problems
            )
            return
        self._not_reloaded = ()
        fixed = restart_needed(self._settings, new)
        for key in fixed:
            log.warning("%s has changed: it takes effect after a restart", key)
        self._settings = _keeping(self._settings, new, fixed)
        self._health.resync = self._settings.proxy.resync
        self._set_timeouts()
        await self._listen()
        self._loop.set_settings(self._settings)
        log.info("configuration reloaded from %s", self._path)

    def _cordon(self, cordoned: bool) -> None:
        self._health.cordoned = cordoned
        log.info("this host is %s", "cordoned: /healthz answers 503" if cordoned else "in service")

    def _findings(self) -> tuple[Finding, ...]:
        listeners = (self._health_listener, self._metrics_listener)
        return tuple(
            sorted(
                {
                    *self._reconciler.findings(),
                    *self._service_health.findings,
                    *self._loop.findings(),
                    *self._not_reloaded,
                    *(listener.finding for listener in listeners if listener.finding),
                }
            )
        )

    def _status(self) -> Status:
        now = time.monotonic()
        store, actual = self._store.health, self._reconciler.actual
        counts = self._reconciler.catalog.counts()
        return Status(
            version=__version__,
            node=self._settings.node.name,
            pid=os.getpid(),
            uptime=now - self._started,
            revision=self._reconciler.applied,
            revision_seen=max(store.revision, self._reconciler.catalog.revision),
            ready=self._health.ready,
            healthy=self._health.is_healthy(),
            cordoned=self._health.cordoned,
            services=counts.services,
            endpoints=counts.endpoints,
            synced=self._health.since_applied() if self._health.ready else None,
            store=StoreStatus(
                endpoint=store.endpoint or "",
                connected=store.problem is None,
                age=None if store.confirmed_at is None else now - store.confirmed_at,
            ),
            kernel=KernelCounts(
                virtual_servers=len(actual.servers),
                real_servers=sum(map(len, actual.reals.values())),
                node_ports=sum(name in NODE_PORT_SETS for name, _ in actual.elements),
                drains=len(actual.drains),
            ),
            findings=self._findings(),
        )


def _keeping(old: Settings, new: Settings, keys: tuple[str, ...]) -> Settings:
    """The new settings with the old values of some keys (`section.key`)."""
    sections = {name: getattr(new, name) for name in SECTIONS}
    for key in keys:
        section, _, field = key.partition(".")
        value = getattr(getattr(old, section), field)
        sections[section] = msgspec.structs.replace(sections[section], **{field: value})
    return Settings(**sections)
