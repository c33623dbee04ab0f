"""IPVS as the kernel holds it, in values: every attribute of anyone's virtual servers and destinations.

The model (:mod:`edgeproxy.model`) knows what this project wants from IPVS; these values know what
is there. `virtual_server` and `real_server` translate, and `plain` says whether the translation
tells all.
"""

from __future__ import annotations

import enum

import msgspec

from edgeproxy.address import Address, is_ipv4
from edgeproxy.model import Frontend, Protocol, RealServer, VirtualServer

AF_INET, AF_INET6 = 2, 10
WHOLE_CLIENT_4, WHOLE_CLIENT_6 = 0xFFFFFFFF, 128


class ServiceFlag(enum.IntFlag):
    """IP_VS_SVC_F_*. The meaning of SCHED1..3 is the scheduler's: `mh-fallback` and `mh-port`,
    `sh-fallback` and `sh-port` are SCHED1 and SCHED2."""

    PERSISTENT = 0x01
    HASHED = 0x02
    ONE_PACKET = 0x04
    SCHED1 = 0x08
    SCHED2 = 0x10
    SCHED3 = 0x20


class Forwarding(enum.IntEnum):
    """IP_VS_CONN_F_*: how a destination gets its packets (IP_VS_CONN_F_FWD_MASK)."""

    MASQUERADE = 0
    LOCAL = 1
    TUNNEL = 2
    DIRECT = 3
    BYPASS = 4


class Statistics(msgspec.Struct, frozen=True, gc=False):
    """Counters since the entry was made or zeroed, and rates per second.

    The 64 bit form (STATS64, Linux 4.1) where the kernel has it, else the 32 bit form.
    """

    connections: int = 0
    in_packets: int = 0
    out_packets: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    connection_rate: int = 0
    in_packet_rate: int = 0
    out_packet_rate: int = 0
    in_byte_rate: int = 0
    out_byte_rate: int = 0


class VirtualServerEntry(msgspec.Struct, frozen=True, gc=False):
    """A virtual server as the kernel holds it, anyone's.

    A firewall-mark service has `fwmark` set, no protocol (0), no address (b"") and port 0; the
    family is that of its destinations.

    flags: :class:`ServiceFlag` bits. timeout: seconds of persistence; IPVS keeps 300 or what was
        set even when the PERSISTENT flag is off.
    netmask: granularity of persistence. IPv4: the mask as a number; IPv6: the prefix length.
    persistence_engine: `sip` or "".
    """

    family: int
    protocol: int
    address: Address
    port: int
    scheduler: str
    fwmark: int = 0
    flags: int = 0
    timeout: int = 0
    netmask: int = WHOLE_CLIENT_4
    persistence_engine: str = ""
    statistics: Statistics | None = None

    @property
    def frontend(self) -> Frontend | None:
        """The frontend, None for a firewall mark or a protocol services cannot have."""
        if self.fwmark or self.protocol not in _PROTOCOLS:
            return None
        return Frontend(self.address, _PROTOCOLS[self.protocol], self.port)

    @property
    def virtual_server(self) -> VirtualServer | None:
        """In the words of the model, None where there is no frontend.

        Every flag but PERSISTENT and HASHED is kept, so one that nobody wants (one-packet) shows.
        """
        frontend = self.frontend
        if frontend is None:
            return None
        timeout = self.timeout if self.flags & _PERSISTENT else 0
        return VirtualServer(frontend, self.scheduler, timeout, self.flags & ~_DERIVED)

    @property
    def plain(self) -> bool:
        """Whether :attr:`virtual_server` says everything; if not, only an edit makes it so."""
        whole = WHOLE_CLIENT_4 if self.family == AF_INET else WHOLE_CLIENT_6
        return self.netmask == whole and not self.persistence_engine

    @classmethod
    def of(cls, server: VirtualServer) -> VirtualServerEntry:
        """The entry the kernel is to hold for a virtual server of the model."""
        frontend = server.frontend
        four = is_ipv4(frontend.address)
        return cls(
            family=AF_INET if four else AF_INET6,
            protocol=frontend.protocol,
            address=frontend.address,
            port=frontend.port,
            scheduler=server.scheduler,
            flags=server.flags & ~_DERIVED | (_PERSISTENT if server.timeout else 0),
            timeout=server.timeout,
            netmask=WHOLE_CLIENT_4 if four else WHOLE_CLIENT_6,
        )


class DestinationEntry(msgspec.Struct, frozen=True, gc=False):
    """A destination as the kernel holds it, anyone's.

    weight: 0..2147483647, 0 takes no new connections. upper, lower: connection thresholds, 0 is
        none. active: established TCP (or UDP with state) connections; inactive: all others;
        persistent: templates. tunnel_*: type (0 IPIP, 1 GUE, 2 GRE), port and flags of a tunnel.
    """

    address: Address
    port: int
    forwarding: int = Forwarding.MASQUERADE
    weight: int = 1
    upper: int = 0
    lower: int = 0
    active: int = 0
    inactive: int = 0
    persistent: int = 0
    tunnel_type: int = 0
    tunnel_port: int = 0
    tunnel_flags: int = 0
    statistics: Statistics | None = None

    @property
    def real_server(self) -> RealServer:
        """In the words of the model."""
        return RealServer(self.address, self.port, self.weight)

    @property
    def plain(self) -> bool:
        """Whether :attr:`real_server` says everything; if not, only an edit makes it so."""
        return self.forwarding == Forwarding.MASQUERADE and not self.upper and not self.lower

    @classmethod
    def of(cls, real: RealServer) -> DestinationEntry:
        """The entry the kernel is to hold for a real server of the model."""
        return cls(real.address, real.port, Forwarding.MASQUERADE, real.weight)


DISTORTED = -1
"""In place of the weight of a destination that only an edit makes what the model says."""

Weights = dict[tuple[Address, int], int]
"""The weights of the destinations of one virtual server, by address and port."""


class VirtualServerState(msgspec.Struct, frozen=True, gc=False):
    """A virtual server and its destinations, in the kernel's order."""

    server: VirtualServerEntry
    destinations: tuple[DestinationEntry, ...]

    @property
    def weights(self) -> Weights:
        """What the model has to know of the destinations."""
        return {
            (entry.address, entry.port): entry.weight if entry.plain else DISTORTED
            for entry in self.destinations
        }


class Timeouts(msgspec.Struct, frozen=True, gc=False):
    """Connection timeouts of this network namespace, in seconds. Setting 0 leaves a value alone."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


class Information(msgspec.Struct, frozen=True, gc=False):
    """IPVS version (`1.2.1`) and number of buckets of the connection hash table."""

    version: str
    connection_table_size: int


_PROTOCOLS = {int(protocol): protocol for protocol in Protocol}
# Plain numbers: the complement of an IntFlag has only the bits that have a name.
_PERSISTENT = int(ServiceFlag.PERSISTENT)
_DERIVED = int(ServiceFlag.PERSISTENT | ServiceFlag.HASHED)
