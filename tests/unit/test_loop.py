"""The loop around a real engine, an imaginary kernel and a store of our own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import cast

import msgspec
import pytest

from edgeproxy import loop as loop_module
from edgeproxy import resolver, systemd
from edgeproxy.address import parse
from edgeproxy.etcd.changes import Batch, Cause, Compacted, KeyValue, Snapshot
from edgeproxy.etcd.delivery import Delivery
from edgeproxy.etcd.errors import StoreError
from edgeproxy.etcd.health import StoreHealth
from edgeproxy.etcd.ledger import LedgerImage
from edgeproxy.etcd.store import Store
from edgeproxy.health import Clock, Health
from edgeproxy.keeper import Keeper
from edgeproxy.kernel.nft_script import NftError
from edgeproxy.loop import Loop
from edgeproxy.metrics import Metrics
from edgeproxy.model import Frontend, Protocol, Reason
from edgeproxy.settings import Settings
from edgeproxy.status import Status
from tests.unit.site import PREFIX, SETTINGS, Record, Site

WEB = Frontend(parse("10.96.0.10"), Protocol.TCP, 8000)
WALK_THROUGH: dict[str, Record | None] = {
    "web": {"clusterIP": "10.96.0.10", "ports": [{"port": 8000, "targetPort": 80}]},
    "web/endpoints/a": "10.1.1.2",
}
PATIENCE = 10.0


class FakeStore:
    """A store whose changes come when the test says so; `history` answers `value_before`."""

    def __init__(self) -> None:
        self.changes = Delivery(1000)
        self.health = StoreHealth()
        self.health.problem = None
        self.history: dict[tuple[bytes, int], KeyValue | Compacted | None] = {}
        self.failures = 0
        self.told: LedgerImage | None = None

    def ledger(self) -> LedgerImage | None:
        """What was delivered so far, if it is all taken."""
        return None if self.changes.waiting else self.told

    async def value_before(self, key: bytes, revision: int) -> KeyValue | Compacted | None:
        """What a key held just before a revision."""
        if self.failures:
            self.failures -= 1
            raise StoreError("out of reach")
        return self.history[key, revision]


class FakeWatch:
    """A subscription to notices of the kernel; a byte in the pipe is one."""

    ours = True
    ends: list[int]

    def __init__(self, _: object) -> None:
        self._read, self.write = os.pipe()
        FakeWatch.ends.append(self.write)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._read

    def read(self) -> FakeWatch:
        """Takes the notice."""
        os.read(self._read, 100)
        return self

    def close(self) -> None:
        """Closes the pipe."""
        os.close(self._read)
        os.close(self.write)


class Rig:
    """A running loop and everything round it."""

    def __init__(self, settings: Settings, site: Site | None = None) -> None:
        self.site = site or Site(settings)
        self.store = FakeStore()
        reconciler = self.site.reconciler
        self.health = Health(30.0, Clock(time.monotonic, time.time))
        self.synced = 0
        self.metrics = Metrics(_no_status, lambda: self.store.health)
        self.keeper = Keeper(self.site.directory, PREFIX)
        self.loop = Loop(
            settings,
            cast(Store, self.store),
            reconciler,
            self.site.kernel.wires(),
            self.health,
            self.metrics,
            self._count,
            self.keeper,
            self.keeper.read(),
        )
        self.said: list[str] = []

    async def _count(self) -> None:
        self.synced += 1

    def snapshot(self, records: dict[str, Record | None]) -> None:
        """The store delivers a complete state."""
        self.site.write(records)
        held = tuple(self.site.records.values())
        self.store.changes.put(Snapshot(self.site.revision, held, Cause.START))

    def change(self, records: dict[str, Record | None]) -> None:
        """The store delivers one transaction."""
        events = self.site.write(records)
        self.store.changes.put(Batch(self.site.revision, tuple(events)))

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something the loop brings about."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"still not: {what}"
            await asyncio.sleep(0.002)

    async def applied(self) -> None:
        """Wait until all that was delivered is in the kernel."""
        await self.until(lambda: self.site.reconciler.applied == self.site.revision, "applied")


def _no_status() -> Status:
    raise NotImplementedError("nobody scrapes here")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches of our own, and clocks that a test can wait for."""
    FakeWatch.ends = []
    for name, value in {
        "HostWatch": FakeWatch,
        "RuleSetWatch": FakeWatch,
        "RETRY_FIRST": 0.01,
        "RETRY_MOST": 0.04,
        "NOTICE_REST": 0.005,
        "DRAIN_TICK": 0.01,
    }.items():
        monkeypatch.setattr(loop_module, name, value)
    monkeypatch.setattr(resolver, "RESOLVE_AGAIN", 0.01)


@contextlib.asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch, settings: Settings = SETTINGS, site: Site | None = None
) -> AsyncIterator[Rig]:
    rig = Rig(settings, site)
    monkeypatch.setattr(systemd, "ready", lambda status: rig.said.append(f"ready: {status}"))
    monkeypatch.setattr(systemd, "status", lambda text: rig.said.append(f"status: {text}"))
    task = asyncio.create_task(rig.loop.run())
    try:
        await rig.until(lambda: bool(rig.said), "running")
        yield rig
    finally:
        rig.loop.stop()
        await asyncio.wait_for(task, PATIENCE)


def with_proxy(**fields: object) -> Settings:
    return msgspec.structs.replace(SETTINGS, proxy=msgspec.structs.replace(SETTINGS.proxy, **fields))


async def test_nothing_is_done_before_the_first_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = msgspec.structs.replace(
        SETTINGS, etcd=msgspec.structs.replace(SETTINGS.etcd, start_grace=0.02)
    )
    async with running(monkeypatch, settings) as rig:
        await rig.until(lambda: len(rig.said) == 2, "the grace is over")
        assert rig.said == ["status: waiting for etcd", "ready: waiting for etcd"]
        assert (rig.site.kernel.writes, rig.synced, rig.health.ready) == (0, 0, False)
        rig.snapshot(WALK_THROUGH)
        await rig.applied()
        assert WEB in rig.site.kernel.servers
        await rig.until(lambda: len(rig.said) == 3, "told")
        assert rig.said[2].startswith("ready: revision 2: 1 services, 1 virtual servers, 0 findings")
        assert rig.health.ready


async def test_an_empty_store_is_a_state_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as rig:
        rig.snapshot({})
        await rig.applied()
        await rig.until(lambda: rig.health.ready, "ready")
        assert rig.site.kernel.script


async def test_a_change_that_changes_nothing_here_is_in_force_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch) as rig:
        rig.snapshot(WALK_THROUGH)
        await rig.applied()
        before = rig.site.kernel.writes
        rig.change({"elsewhere/endpoints/a": "10.1.1.9"})
        await rig.applied()
        assert rig.site.kernel.writes == before


async def test_min_sync_gathers_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, with_proxy(min_sync=0.2)) as rig:
        rig.snapshot({})
        await rig.applied()
        first = time.monotonic()
        await rig.until(lambda: rig.synced == 1, "told")
        for number in range(20):
            rig.change({f"s{number}": {"clusterIP": f"10.96.0.{number}", "ports": [{"port": 80}]}})
            await asyncio.sleep(0)
        await rig.applied()
        assert time.monotonic() - first >= 0.19
        await rig.until(lambda: rig.synced == 2, "told")
        assert len(rig.site.kernel.servers) == 20


async def test_trouble_is_tried_again_later_and_later_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(monkeypatch) as rig:
        rig.snapshot({})
        await rig.applied()
        rig.site.kernel.stop_after(0, NftError("the kernel is out of memory"))
        tries: list[float] = []
        fails = rig.metrics.synced

        def note(seconds: float, *, full: bool, succeeded: bool) -> None:
            if not succeeded:
                tries.append(time.monotonic())
            fails(seconds, full=full, succeeded=succeeded)

        monkeypatch.setattr(rig.metrics, "synced", note)
        rig.change(WALK_THROUGH)

        def wake() -> bool:
            """More changes come all the time; they must not make it any faster."""
            rig.change({"web/endpoints/b": f"10.1.2.{rig.site.revision % 250 + 1}"})
            return len(tries) >= 5

        await rig.until(wake, "five tries")
        waits = [later - earlier for earlier, later in pairwise(tries)]
        for wait, least in zip(waits, (0.01, 0.02, 0.04, 0.04), strict=False):
            assert wait >= least
        (finding,) = rig.loop.findings()
        assert finding.reason is Reason.KERNEL
        assert "out of memory" in finding.message
        assert len([r for r in caplog.records if "out of memory" in r.getMessage()]) == 1
        rig.site.kernel.stop_after(None)
        await rig.applied()
        await rig.until(lambda: rig.loop.findings() == (), "settled")
        assert WEB in rig.site.kernel.servers


async def test_a_drain_that_is_looked_at_is_no_success_of_a_sync_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch) as rig:
        rig.health.resync = 0.1
        rig.snapshot(WALK_THROUGH)
        await rig.applied()
        rig.site.kernel.connections[WEB, (parse("10.1.1.2"), 80)] = 1
        rig.change({"web/endpoints/a": None})
        await rig.until(lambda: bool(rig.site.reconciler.actual.drains), "draining")
        rig.site.kernel.stop_after(0, NftError("the kernel is out of memory"))
        rig.change({"web/endpoints/b": "10.1.2.2"})
        await rig.until(lambda: not rig.health.is_healthy(), "the host counts as late")
        (finding,) = rig.loop.findings()
        assert finding.reason is Reason.KERNEL
        rig.site.kernel.stop_after(None)
        await rig.applied()
        assert rig.health.is_healthy()


async def test_findings_are_logged_once_when_they_come_and_once_when_they_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bad = {"clusterIP": "172.30.0.1", "ports": [{"port": 80}]}

    def said(word: str) -> int:
        return len(
            [r for r in caplog.records if word in r.getMessage() and "OutsideServiceCIDRs" in r.getMessage()]
        )

    async with running(monkeypatch) as rig:
        rig.snapshot({"bad": bad})
        await rig.applied()
        for number in range(3):
            rig.change({"web": {"clusterIP": f"10.96.0.{number}", "ports": [{"port": 80}]}})
            await rig.applied()
        await rig.until(lambda: said("172.30.0.1") == 1, "told")
        rig.change({"bad": None})
        await rig.until(lambda: said("settled") == 1, "told that it is gone")
        assert said("172.30.0.1") == 2


async def test_a_bad_record_is_read_back_to_its_last_good_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as rig:
        rig.site.revision = 8
        key = b"/services/web"
        good = b'{"clusterIP":"10.96.0.10","ports":[{"port":8000}]}'
        rig.store.history[key, 7] = KeyValue(key, b"worse", 3, 6)
        rig.store.history[key, 6] = KeyValue(key, good, 3, 5)
        rig.store.failures = 2
        rig.store.changes.put(Snapshot(8, (KeyValue(key, b"bad", 3, 7),), Cause.START))
        await rig.until(lambda: WEB in rig.site.kernel.servers, "served")
        assert rig.store.failures == 0
        assert [f.reason for f in rig.site.reconciler.findings()] == [Reason.BAD_RECORD]


async def test_a_history_that_is_gone_holds_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as rig:
        key = b"/services/web"
        rig.store.history[key, 2] = Compacted(2)
        rig.store.changes.put(Snapshot(2, (KeyValue(key, b"bad", 1, 2),), Cause.START))
        held = rig.site.reconciler.catalog.held
        await rig.until(lambda: held() == {"web"} and not rig.site.reconciler.catalog.unresolved(), "held")


async def test_a_foreign_change_of_our_tables_is_repaired_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, with_proxy(resync=3600.0)) as rig:
        rig.snapshot(WALK_THROUGH)
        await rig.applied()
        await rig.until(lambda: rig.synced == 1, "told")
        rig.site.kernel.flush_ruleset()
        os.write(FakeWatch.ends[1], b"x")
        await rig.until(lambda: WEB in rig.site.ours() and bool(rig.site.kernel.script), "repaired")


async def test_the_audit_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, with_proxy(resync=0.02)) as rig:
        rig.snapshot(WALK_THROUGH)
        await rig.applied()
        del rig.site.kernel.servers[WEB], rig.site.kernel.reals[WEB]
        await rig.until(lambda: WEB in rig.site.kernel.servers, "repaired")


async def test_drains_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, with_proxy(resync=3600.0)) as rig:
        rig.snapshot(WALK_THROUGH)
        await rig.applied()
        socket = (parse("10.1.1.2"), 80)
        rig.site.kernel.connections[WEB, socket] = 1
        rig.change({"web/endpoints/a": None})
        await rig.until(lambda: rig.site.reals(WEB) == {"10.1.1.2": 0}, "draining")
        rig.site.kernel.connections.clear()
        await rig.until(lambda: rig.site.reals(WEB) == {}, "over")


async def test_a_reload_runs_between_two_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as rig:
        reloaded: list[bool] = []

        async def reload() -> None:
            reloaded.append(True)

        rig.loop.request_reload(reload)
        await rig.until(lambda: bool(reloaded) and len(rig.said) == 2, "reloaded")
        assert rig.said[1] == "ready: waiting for etcd"


async def test_trouble_of_the_store_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as rig:
        rig.store.health.problem = "no endpoint answers"
        (finding,) = rig.loop.findings()
        assert (finding.reason, finding.message) == (Reason.STORE, "no endpoint answers")


async def test_a_stop_leaves_what_the_next_start_begins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as rig:
        rig.snapshot(WALK_THROUGH)
        await rig.applied()
        rig.store.told = LedgerImage(rig.site.revision, 7, {b"/services/web": 5}, (0, b""))
    site = rig.site
    writes = site.kernel.writes
    site.start()
    async with running(monkeypatch, site=site) as rig:
        await asyncio.sleep(0)
        assert rig.site.reconciler.applied == 0, "nothing is done before the store has spoken"
        rig.store.changes.put(Batch(site.revision, (), gap=True))
        await rig.applied()
        assert site.kernel.writes == writes
        rig.change({"web/endpoints/b": "10.1.1.3"})
        await rig.applied()
        assert site.reals(WEB) == {"10.1.1.2": 1, "10.1.1.3": 1}


async def test_what_was_kept_is_forgotten_where_the_store_tells_everything_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch) as rig:
        rig.snapshot(WALK_THROUGH)
        await rig.applied()
        rig.store.told = LedgerImage(rig.site.revision, 7, {}, (0, b""))
    site = rig.site
    site.start()
    async with running(monkeypatch, site=site) as rig:
        rig.snapshot({"web/endpoints/a": None})
        await rig.applied()
        rig.change({"web/endpoints/b": "10.1.1.3"})
        await rig.applied()
        assert "10.1.1.3" in site.reals(WEB)


async def test_what_changes_is_kept_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, with_proxy(resync=0.01)) as rig:
        path = rig.site.directory / "kept"
        rig.snapshot(WALK_THROUGH)
        rig.store.told = LedgerImage(2, 7, {}, (0, b""))
        await rig.until(path.exists, "kept")
        first = path.stat().st_mtime_ns
        monkeypatch.setattr(rig.keeper, "_next", 0.0)
        rig.change({"web/endpoints/b": "10.1.1.3"})
        await rig.until(lambda: path.stat().st_mtime_ns != first, "kept anew")


async def test_what_cannot_be_kept_is_told_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(monkeypatch) as rig:
        rig.snapshot(WALK_THROUGH)
        await rig.applied()
        rig.store.told = LedgerImage(2, 7, {}, (0, b""))
        (rig.site.directory / "kept.new").mkdir()
    assert "kept cannot be written" in caplog.text
    assert WEB in rig.site.kernel.servers
