"""How long to wait before the next connection. Pure."""

from __future__ import annotations

from collections.abc import Callable

from edgeproxy.etcd.errors import Refused, StoreError
from edgeproxy.etcd.settings import Timing


class Backoff:
    """Doubling waits with +-50 % jitter; slow once every endpoint has refused us in a row.

    `random` gives numbers in [0, 1). Only `succeeded` starts over: a connection that opens and
    breaks again has not succeeded, else a server that closes at once would be called in a loop.
    """

    def __init__(self, timing: Timing, endpoints: int, random: Callable[[], float]) -> None:
        self._timing = timing
        self._endpoints = endpoints
        self._random = random
        self._wait = timing.backoff_first
        self._refused = 0

    def failed(self, error: StoreError) -> float:
        """Seconds to wait after `error`."""
        jitter = 0.5 + self._random()
        self._refused = self._refused + 1 if isinstance(error, Refused) else 0
        if self._refused >= self._endpoints:
            return self._timing.refused * jitter
        wait = self._wait
        self._wait = min(wait * 2, self._timing.backoff_most)
        return wait * jitter

    def succeeded(self) -> None:
        """An event, a progress notification or a confirmed read has come through."""
        self._wait = self._timing.backoff_first
        self._refused = 0
