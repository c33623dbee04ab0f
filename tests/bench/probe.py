"""Tells when the kernel shows something: the same witness for every peer, through our own IPVS codec.

IPVS notifies nobody, so it is asked again and again: one look is two round trips into the kernel. The
rest between two looks is a share of the time waited, and several times what a look takes: it must not
take the processor from what it waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from edgeproxy.books import Socket
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.model import Frontend
from tests.bench.load import BACKEND_PORT, Load, frontend, packed
from tests.lab.namespace import Host

SHARE, LOOKS, REST = 0.05, 3.0, 0.0005
"""Rest between two looks: this share of the time waited, but so many times the time of a look and so many
seconds at least."""


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
        self._wait(lambda: self.weight(server, address) == weight, cap)

    def wait_server(self, server: Frontend, reals: int | None, cap: float) -> None:
        """Wait until a virtual server has so many real servers, or is gone (None). Raises as `wait_weight`."""

        def there() -> bool:
            found = self.weights(server)
            return (None if found is None else len(found)) == reals

        self._wait(there, cap)

    def wait_complete(self, load: Load, cap: float) -> None:
        """Wait until all virtual servers have their real servers. Raises as `wait_weight`.

        Every peer writes in the order of its input, so the last one is watched; :meth:`verify`
        counts them all, outside the measured time.
        """
        self.wait_server(frontend(load.services - 1), load.endpoints, cap)

    def verify(self, load: Load) -> None:
        """Count everything.

        Raises:
            AssertionError: the kernel does not hold what the records say.
        """
        states = self._ipvs.dump()
        found = (len(states), sum(len(state.destinations) for state in states))
        assert found == (load.services, load.reals), f"IPVS holds {found}, expected {load}"

    def _wait(self, there: Callable[[], bool], cap: float) -> None:
        began = looked = time.monotonic()
        while not there():
            now = time.monotonic()
            if now - began > cap:
                raise Capped
            time.sleep(max(REST, LOOKS * (now - looked), SHARE * (now - began)))
            looked = time.monotonic()
