"""Guard rails: what no record may take over on a host, and whose it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgeproxy.address import Address


class Refusals(msgspec.Struct, frozen=True):
    """Ports and addresses that are spoken for.

    node_ports: port number -> `etcd`, `[health] listen`, ...
    addresses: address -> `an etcd endpoint`, `a gateway of this host`, `a name server of this host`.
    """

    node_ports: Mapping[int, str] = msgspec.field(default_factory=dict)
    addresses: Mapping[Address, str] = msgspec.field(default_factory=dict)
