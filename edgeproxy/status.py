"""What a running daemon says about itself: the answer to `edgeproxy status`. Pure.

The JSON of `status --json` is these structs as they are. Ages are seconds by the monotonic
clock; None means "never yet".
"""

from __future__ import annotations

import msgspec

from edgeproxy.model import Finding


class StoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The connection to etcd.

    endpoint: the one in use or tried last. age: since the store last confirmed what we know.
    """

    endpoint: str = ""
    connected: bool = False
    age: float | None = None


class KernelCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How much of each kind we hold in the kernel."""

    virtual_servers: int = 0
    real_servers: int = 0
    node_ports: int = 0
    drains: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One host at one moment.

    revision: the store's revision that is in the kernel. revision_seen: the newest received.
    ready: a complete state has been applied. synced: age of the last successful sync.
    """

    version: str
    node: str
    pid: int
    uptime: float
    revision: int
    revision_seen: int
    ready: bool
    healthy: bool
    cordoned: bool
    services: int
    endpoints: int
    synced: float | None = None
    store: StoreStatus = StoreStatus()
    kernel: KernelCounts = KernelCounts()
    findings: tuple[Finding, ...] = ()
