"""What the health answers say as time goes by: on a clock of the test."""

from __future__ import annotations

import json

import pytest

from edgeproxy.health import Clock, Health, ServicePortHealth, service_answer
from tests.conformance.behaviour import kp

RESYNC = 30.0
HOUR = 3600.0


class Host:
    """The health of a host and the time on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.health = Health(RESYNC, Clock(lambda: self.now, lambda: self.now))

    def statuses(self) -> tuple[int, int]:
        """Of /healthz and /livez."""
        return self.health.healthz().status, self.health.livez().status


@pytest.fixture
def host() -> Host:
    return Host()


@kp("KP-213", "A data plane that is late answers 503 for a service, with the true count of endpoints")
def test_kp_213_a_late_host(host: Host) -> None:
    port = ServicePortHealth("web", "/services/web", 3)
    host.health.queued()
    host.now += 2 * RESYNC + 1
    answer = service_answer(port, host.health.is_healthy())
    assert answer.status == 503
    body = json.loads(answer.body)
    assert (body["localEndpoints"], body["serviceProxyHealthy"]) == (3, False)
    assert dict(answer.headers)["X-Load-Balancing-Endpoint-Weight"] == "3"

    host.health.applied(2, host.now)
    answer = service_answer(port, host.health.is_healthy())
    assert (answer.status, json.loads(answer.body)["serviceProxyHealthy"]) == (200, True)


@kp("KP-220", "One change that is late, of whichever family, makes the whole host late")
def test_kp_220_one_late_change_is_enough(host: Host) -> None:
    """Both families are synced together: there is one queue, and its oldest change counts."""
    host.health.queued()
    host.now += RESYNC
    host.health.queued()
    host.now += RESYNC + 1
    assert host.statuses() == (503, 503)


@kp("KP-221", "An hour without any change is healthy")
def test_kp_221_idle_is_healthy(host: Host) -> None:
    host.health.queued()
    host.health.applied(2, host.now)
    host.now += HOUR
    assert host.statuses() == (200, 200)
