"""Health as kube-proxy answers it: whether the data plane keeps up, and whether the host should get traffic. Pure.

Source: Kubernetes' `pkg/proxy/healthcheck/proxy_health.go` and `service_health.go`, KEP-3836, KEP-3458.
Times are of one monotonic clock, in seconds; only the answers show wall-clock time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

OK = 200
NOT_FOUND = 404
UNAVAILABLE = 503
JSON = "application/json"
PLAIN = "text/plain; charset=utf-8"

# kube-proxy: a change may wait for two sync periods.
LATE_AFTER_RESYNCS = 2


class Answer(msgspec.Struct, frozen=True):
    """An HTTP answer: status code, body, content type, further headers."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


class Clock(msgspec.Struct, frozen=True):
    """The two clocks, as functions that give seconds."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]


class Health:
    """Whether changes reach the kernel in time, and what the host says of itself.

    The daemon calls :meth:`queued` when a change arrives and :meth:`applied` after each successful
    sync. Idle or starting is healthy; only a change that waits too long is not.
    """

    def __init__(self, resync: float, clock: Clock, *, cordoned: bool = False) -> None:
        """`resync`: `[proxy].resync` in seconds."""
        self.resync = resync
        self.cordoned = cordoned
        self.ready = False
        self.revision = 0
        self._clock = clock
        self._oldest: float | None = None
        self._newest = clock.monotonic()
        self._applied = clock.monotonic()

    def queued(self) -> None:
        """A change has arrived that is not in the kernel yet."""
        self._newest = self._clock.monotonic()
        if self._oldest is None:
            self._oldest = self._newest

    def applied(self, revision: int, started: float) -> None:
        """A sync has succeeded that took in every change queued before `started`."""
        self._applied = self._clock.monotonic()
        self.revision = revision
        if self._oldest is not None:
            # What came while the sync ran is still waiting; it came after `started` at the earliest.
            self._oldest = max(self._oldest, started) if self._newest > started else None

    def is_healthy(self) -> bool:
        """Whether no change has been waiting for more than two resync periods."""
        waiting = 0.0 if self._oldest is None else self._clock.monotonic() - self._oldest
        return waiting <= LATE_AFTER_RESYNCS * self.resync

    def since_applied(self) -> float:
        """Seconds since the last successful sync (or since the start)."""
        return self._clock.monotonic() - self._applied

    def healthz(self) -> Answer:
        """For load balancers: 503 when late, and when the host is cordoned."""
        eligible = not self.cordoned
        return self._answer(self.is_healthy() and eligible, self._body() | {"nodeEligible": eligible})

    def livez(self) -> Answer:
        """For supervisors: 503 only when late."""
        return self._answer(self.is_healthy(), self._body())

    def readyz(self) -> Answer:
        """200 once the first complete state is in the kernel."""
        return self._answer(self.ready, {"ready": self.ready, "revision": self.revision})

    def _body(self) -> dict[str, object]:
        now = self._clock.wall()
        healthy = self.is_healthy()
        updated = now if healthy else now - self.since_applied()
        return {"lastUpdated": _rfc3339(updated), "currentTime": _rfc3339(now), "healthy": healthy}

    @staticmethod
    def _answer(good: bool, body: dict[str, object]) -> Answer:
        return Answer(OK if good else UNAVAILABLE, msgspec.json.encode(body))


class ServicePortHealth(msgspec.Struct, frozen=True):
    """What a healthCheckNodePort says: the service, its record's key, its ready local endpoints (by address)."""

    service: str
    key: str
    local_endpoints: int


def service_answer(port: ServicePortHealth, healthy: bool) -> Answer:
    """200 if this host has ready endpoints of the service and keeps up; the count is true either way.

    Whether the host is cordoned is not looked at: its endpoints still take traffic.
    """
    body = {
        "service": {"namespace": "", "name": port.service},
        "localEndpoints": port.local_endpoints,
        "serviceProxyHealthy": healthy,
    }
    return Answer(
        OK if healthy and port.local_endpoints > 0 else UNAVAILABLE,
        msgspec.json.encode(body),
        headers=(("X-Load-Balancing-Endpoint-Weight", str(port.local_endpoints)),),
    )


def port_changes(
    old: Mapping[int, ServicePortHealth], new: Mapping[int, ServicePortHealth]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ports to close and the ports to open, each sorted; a port that stays only changes its answer."""
    return tuple(sorted(old.keys() - new.keys())), tuple(sorted(new.keys() - old.keys()))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
