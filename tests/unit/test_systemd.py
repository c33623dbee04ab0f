"""Readiness messages, watchdog and journal, against a real notify socket."""

from __future__ import annotations

import itertools
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeproxy import systemd
from edgeproxy.systemd import Watchdog, fields


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_what_the_manager_is_told(manager: socket.socket) -> None:
    systemd.ready("revision 7")
    systemd.status("waiting for etcd")
    systemd.reloading()
    systemd.stopping()

    assert manager.recv(500) == b"READY=1\nSTATUS=revision 7"
    assert manager.recv(500) == b"STATUS=waiting for etcd"
    reloading, _, moment = manager.recv(500).partition(b"\nMONOTONIC_USEC=")
    assert reloading == b"RELOADING=1"
    assert int(moment) > 0
    assert manager.recv(500).startswith(b"STOPPING=1")


def test_outside_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    systemd.ready("x")
    watchdog = Watchdog.from_environment({})
    watchdog.progress()
    assert watchdog.turn is None


def test_the_watchdog_is_petted_only_by_progress_and_not_too_often() -> None:
    now, pets = 100.0, []
    watchdog = Watchdog(40.0, lambda: pets.append(now), lambda: now)
    assert watchdog.turn == 10.0

    for moment in (100.0, 101.0, 109.9, 110.0, 150.0, 150.1):
        now = moment
        watchdog.progress()

    assert pets == [100.0, 110.0, 150.0]


def test_a_loop_that_turns_in_time_is_never_late() -> None:
    now, pets = 0.0, []
    watchdog = Watchdog(40.0, lambda: pets.append(now), lambda: now)
    for _ in range(100):
        watchdog.progress()
        now += 9.999

    assert max(later - earlier for earlier, later in itertools.pairwise(pets)) <= 20.0


@pytest.mark.parametrize(
    ("environment", "turn"),
    [
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "60000000"}, 15.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_what_systemd_asks_of_this_process(environment: dict[str, str], turn: float | None) -> None:
    assert Watchdog.from_environment(environment).turn == turn


def test_the_pet_goes_to_the_manager(manager: socket.socket) -> None:
    Watchdog(10.0).progress()

    assert manager.recv(500) == b"WATCHDOG=1"


def test_journal_fields_reach_the_journal_and_noise_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr("systemd.journal.send", lambda message, **found: sent.append((message, found)))
    handler = systemd.journal.JournalHandler(sender_function=systemd._send, SYSLOG_IDENTIFIER="edgeproxy")
    logger = logging.getLogger("edgeproxy.test")
    logger.addHandler(handler)

    logger.warning("%s is bad", "web", extra=fields(service="web", key="/services/web", revision=9))

    ((message, found),) = sent
    assert message == "web is bad"
    assert found["EDGEPROXY_SERVICE"] == "web"
    assert found["EDGEPROXY_KEY"] == "/services/web"
    assert found["EDGEPROXY_REVISION"] == "9"
    assert found["PRIORITY"] == "4"
    assert not {"args", "levelno", "msecs", "thread"} & found.keys()


def test_the_journal_is_used_only_if_it_is_where_stderr_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        stat = os.fstat(stderr.fileno())
        assert systemd._stderr_is_journal({"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"})
        assert not systemd._stderr_is_journal({"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino + 1}"})
        assert not systemd._stderr_is_journal({})
