"""Tells when the kernel shows something: the same witness for every peer, through our own IPVS codec.

What it costs is part of every figure: one look is two round trips into the kernel, made again
after `REST` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from edgeproxy.books import Socket
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.model import Frontend
from tests.bench.load import BACKEND_PORT, Load, frontend, packed
from tests.lab.namespace import Host

REST = 0.001
"""Seconds between two looks for one change."""
REST_LONG = 0.05
"""The same for cases that take seconds: looking must not slow down the work."""


class Capped(Exception):
    """It took longer than a peer may take; the figure is a lower bound."""


class Probe:
    """Looks at the IPVS of one machine."""

    def __init__(self, host: Host) -> None:
        self._ipvs = host.in_namespace(Ipvs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ipvs.close()

    def weights(self, server: Frontend) -> Mapping[Socket, int] | None:
        """The real servers of a virtual server with their weights; None if there is no such server."""
        state = self._ipvs.dump_frontend(server)
        if state is None:
            return None
        return {(entry.address, entry.port): entry.weight for entry in state.destinations}

    def weight(self, server: Frontend, address: str) -> int | None:
        """The weight of one real server, None if it is not there."""
        return (self.weights(server) or {}).get((packed(address), BACKEND_PORT))

    def wait_weight(self, server: Frontend, address: str, weight: int | None, cap: float) -> None:
        """Wait until a real server has a weight, or is gone (None).

        Raises:
            Capped: it did not happen within `cap` seconds.
        """
        end = time.monotonic() + cap
        while self.weight(server, address) != weight:
            _rest(REST, end)

    def wait_server(self, server: Frontend, reals: int | None, cap: float, rest: float = REST) -> None:
        """Wait until a virtual server has so many real servers, or is gone (None). Raises as `wait_weight`."""
        end = time.monotonic() + cap
        while (None if (found := self.weights(server)) is None else len(found)) != reals:
            _rest(rest, end)

    def wait_complete(self, load: Load, cap: float) -> None:
        """Wait until all virtual servers have their real servers. Raises as `wait_weight`.

        Every peer writes in the order of its input, so the last one is watched; :meth:`verify`
        counts them all, outside the measured time.
        """
        self.wait_server(frontend(load.services - 1), load.endpoints, cap, REST_LONG)

    def verify(self, load: Load) -> None:
        """Count everything.

        Raises:
            AssertionError: the kernel does not hold what the records say.
        """
        states = self._ipvs.dump()
        found = (len(states), sum(len(state.destinations) for state in states))
        assert found == (load.services, load.reals), f"IPVS holds {found}, expected {load}"


def _rest(seconds: float, end: float) -> None:
    if time.monotonic() > end:
        raise Capped
    time.sleep(seconds)
