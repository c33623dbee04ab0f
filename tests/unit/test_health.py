"""Health as kube-proxy tells it: late, idle, cordoned, ready, and the per-service answers."""

from __future__ import annotations

import json

import pytest

from edgeproxy.health import Answer, Clock, Health, ServicePortHealth, port_changes, service_answer

RESYNC = 30.0


class Time:
    """A clock that moves when told; its wall clock is 1,000,000 s ahead."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda: self.now + 1_000_000)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def health(time: Time) -> Health:
    return Health(RESYNC, time.clock())


def body(answer: Answer) -> dict[str, object]:
    found = json.loads(answer.body)
    assert isinstance(found, dict)
    return found


def test_starting_and_idle_are_healthy(time: Time, health: Health) -> None:
    assert health.healthz().status == 200
    time.now += 3600
    assert (health.healthz().status, health.livez().status) == (200, 200)


def test_a_change_may_wait_for_two_resyncs_and_no_longer(time: Time, health: Health) -> None:
    health.queued()
    time.now += 2 * RESYNC
    assert health.livez().status == 200
    time.now += 0.1
    assert (health.healthz().status, health.livez().status) == (503, 503)

    health.applied(7, started=time.now)
    assert (health.healthz().status, health.livez().status) == (200, 200)


def test_the_oldest_waiting_change_counts(time: Time, health: Health) -> None:
    health.queued()
    time.now += 1.5 * RESYNC
    health.queued()
    time.now += RESYNC
    assert not health.is_healthy()


def test_a_change_that_came_during_a_sync_still_waits(time: Time, health: Health) -> None:
    health.queued()
    time.now += 1
    started = time.now
    time.now += 1
    health.queued()
    time.now += 1
    health.applied(7, started=started)

    time.now = started + 2 * RESYNC
    assert health.is_healthy()
    time.now += 0.1
    assert not health.is_healthy()


def test_what_healthz_says(time: Time, health: Health) -> None:
    time.now += 10
    health.applied(7, started=time.now)
    time.now += 10
    assert body(health.healthz()) == {
        "lastUpdated": "1970-01-12T13:48:40.000Z",
        "currentTime": "1970-01-12T13:48:40.000Z",
        "healthy": True,
        "nodeEligible": True,
    }
    health.queued()
    time.now += 100
    late = body(health.healthz())
    assert late["lastUpdated"] == "1970-01-12T13:48:30.000Z"
    assert late["currentTime"] == "1970-01-12T13:50:20.000Z"
    assert late["healthy"] is False


def test_a_cordoned_host_fails_healthz_only(health: Health) -> None:
    health.cordoned = True

    assert health.healthz().status == 503
    assert body(health.healthz())["nodeEligible"] is False
    assert body(health.healthz())["healthy"] is True
    assert health.livez().status == 200
    assert "nodeEligible" not in body(health.livez())


def test_ready_after_the_first_complete_state(time: Time, health: Health) -> None:
    assert (health.readyz().status, body(health.readyz())) == (503, {"ready": False, "revision": 0})

    health.applied(12, started=time.now)
    health.ready = True

    assert (health.readyz().status, body(health.readyz())) == (200, {"ready": True, "revision": 12})


@pytest.mark.parametrize(("count", "healthy", "status"), [(2, True, 200), (0, True, 503), (2, False, 503)])
def test_a_service_answer(count: int, healthy: bool, status: int) -> None:
    answer = service_answer(ServicePortHealth("web.shop", "/services/web.shop", count), healthy)

    assert answer.status == status
    assert answer.headers == (("X-Load-Balancing-Endpoint-Weight", str(count)),)
    assert body(answer) == {
        "service": {"namespace": "", "name": "web.shop"},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }


def test_only_ports_that_come_and_go_are_opened_and_closed() -> None:
    one, two = ServicePortHealth("a", "/a", 1), ServicePortHealth("a", "/a", 2)

    assert port_changes({}, {5: one, 3: one}) == ((), (3, 5))
    assert port_changes({5: one, 3: one}, {5: two, 4: one}) == ((3,), (4,))
