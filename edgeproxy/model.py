"""The desired and the actual state of one host, in kernel-neutral values.

Everything here is frozen, hashable and ordered (and `array_like`, where many of a kind are written to
disk: see `kept`): the compiler makes such values from records,
the kernel readers make the same values from what the kernel holds, and the planner compares
the two. No value knows where it came from.
"""

from __future__ import annotations

import enum

import msgspec

from edgeproxy.address import Address, with_port


class Protocol(enum.IntEnum):
    """Transport protocols a service port can have; the value is the IANA protocol number."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Reason(enum.StrEnum):
    """Why a finding was made: the label of the metric, the `reason` of `status --json`."""

    BAD_KEY = "BadKey"
    BAD_RECORD = "BadRecord"
    UNKNOWN_FIELD = "UnknownField"
    CONFLICT = "Conflict"
    REFUSED = "Refused"
    UNKNOWN_SCHEDULER = "UnknownScheduler"
    WEIGHTS_IGNORED = "WeightsIgnored"
    OUTSIDE_SERVICE_CIDRS = "OutsideServiceCIDRs"
    UNRESOLVED_PORT = "UnresolvedPort"
    FOREIGN_VIRTUAL_SERVER = "ForeignVirtualServer"
    NODE_PORT_IN_USE = "NodePortInUse"
    SYSCTL = "Sysctl"
    ROUTE = "Route"
    FIREWALL = "Firewall"
    KERNEL = "Kernel"
    STORE = "Store"
    STATE = "State"
    CONFIGURATION = "Configuration"
    HELD = "Held"
    BUG = "Bug"


class Finding(msgspec.Struct, frozen=True, order=True, gc=False):
    """Something an operator should know about; it stands until its cause is gone.

    key: the record's key below the prefix included, or "" for the host itself.
    revision: mod revision of that record, 0 where there is none.
    path: JSON path inside the record (`ports[0].nodePort`), "" for the whole.
    message: what was found, what was expected, what to do.
    """

    key: str
    revision: int
    path: str
    reason: Reason
    message: str


class Frontend(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """What clients call: the identity of a virtual server."""

    address: Address
    protocol: Protocol
    port: int

    def __str__(self) -> str:
        return f"{self.protocol.name.lower()}/{with_port(self.address, self.port)}"


class RealServer(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """A backend behind a virtual server. `weight` 0 takes no new connections."""

    address: Address
    port: int
    weight: int = 1

    def __str__(self) -> str:
        return with_port(self.address, self.port)


class VirtualServer(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """The attributes of a virtual server that can be edited in place.

    timeout: seconds of client affinity; 0 means none (IPVS persistence is off).
    flags: IPVS scheduler flags, IP_VS_SVC_F_SCHED1..3 (0x08, 0x10, 0x20), e.g. mh-port. The
        persistence and hashed flags (0x01, 0x02) follow from `timeout` and the kernel.
    """

    frontend: Frontend
    scheduler: str
    timeout: int = 0
    flags: int = 0


class SetName(enum.StrEnum):
    """The sets and maps of our own nft tables whose elements come from records.

    Where the kernel needs a type per family the name carries `4` or `6`. `unanswered` is in table
    `arp edgeproxy`, all others are in `inet edgeproxy`.
    """

    FRONTENDS4 = "frontends4"
    FRONTENDS6 = "frontends6"
    ADDRESSES4 = "addresses4"
    ADDRESSES6 = "addresses6"
    NODE_PORTS4 = "node_ports4"
    NODE_PORTS6 = "node_ports6"
    HAIRPIN4 = "hairpin4"
    HAIRPIN6 = "hairpin6"
    DETOURS4 = "detours4"
    DETOURS6 = "detours6"
    SOURCES4 = "sources4"
    SOURCES6 = "sources6"
    DRAINS4 = "drains4"
    DRAINS6 = "drains6"
    UNANSWERED = "unanswered"


class Element(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One element of a set or map of our tables.

    key: the concatenated fields in order: an Address, a Protocol or a port number (int).
    until: upper end of each field where the set holds ranges (`sources*`), else ().
    verdict: name of the chain a verdict map sends to (`goto`), else "".
    data: the address a data map gives (`detours*`), else b"".
    comment: the service the element belongs to; shown by `nft list`, "" where shared.
    """

    set: SetName
    key: tuple[Address | int, ...]
    verdict: str = ""
    data: Address = Address(b"")
    comment: str = ""
    until: tuple[Address | int, ...] = ()
