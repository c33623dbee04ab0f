"""Anchor addresses for external addresses under Local: who goes where is kept by the kernel's map.

An external address under `externalTrafficPolicy: Local` has two lists of backends, but IPVS has one
per address and port. Host processes and local workloads are therefore sent to an anchor, one for
each such address, where the virtual servers have all endpoints (design: section 7, 10).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from edgeproxy.address import Address, Network, is_ipv4
from edgeproxy.kernel.ruleset import NodePortAnchor, anchor

FIRST = max(NodePortAnchor) + 1


class Detours(Mapping[Address, Address]):
    """External address -> anchor. An allotment stays until it is released, so flows stay, too."""

    def __init__(self, anchor_cidrs: Iterable[Network]) -> None:
        self._cidrs = tuple(anchor_cidrs)
        self._anchors: dict[Address, Address] = {}
        self._taken: set[Address] = set()

    def __getitem__(self, external: Address) -> Address:
        return self._anchors[external]

    def __iter__(self) -> Iterator[Address]:
        return iter(self._anchors)

    def __len__(self) -> int:
        return len(self._anchors)

    def adopt(self, external: Address, anchor_address: Address) -> None:
        """Enter an allotment found in the kernel, unless there is one already or it is none of our anchors."""
        free = external not in self._anchors and anchor_address not in self._taken
        if free and any(anchor_address in cidr for cidr in self._cidrs):
            self._anchors[external] = anchor_address
            self._taken.add(anchor_address)

    def allot(self, externals: Iterable[Address]) -> bool:
        """Give each external address an anchor, the lowest free one; false if one gets none."""
        complete = True
        for external in externals:
            complete &= external in self._anchors or self._allot(external)
        return complete

    def _allot(self, external: Address) -> bool:
        cidr = next(n for n in self._cidrs if is_ipv4(n.address) == is_ipv4(external))
        size = 1 << (len(cidr.address) * 8 - cidr.prefix)
        for index in range(FIRST, min(size - 1, FIRST + len(self._taken) + 1)):
            free = anchor(cidr, index)
            if free not in self._taken:
                self.adopt(external, free)
                return True
        return False

    def release(self, unused: Iterable[Address]) -> None:
        """Free the anchors of these external addresses."""
        for external in unused:
            self._taken.discard(self._anchors.pop(external))
