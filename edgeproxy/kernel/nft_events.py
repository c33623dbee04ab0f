"""Notice of what other programs do to the rule set.

Our own changes are silent: those of our socket are dropped in the kernel, those of `nft` children
here. Elements that expire make no notice.
"""

from __future__ import annotations

import msgspec

from edgeproxy.kernel.netlink import OverrunError
from edgeproxy.kernel.netlink_socket import NETLINK_NETFILTER, NetlinkSocket, NetlinkUser
from edgeproxy.kernel.nft import Nft
from edgeproxy.kernel.nft_codec import Command, generation, kind
from edgeproxy.kernel.nft_frame import table_of
from edgeproxy.kernel.nft_sets import TABLE
from edgeproxy.kernel.notices import ignore

_GROUP_NFTABLES = 7


class Table(msgspec.Struct, frozen=True, order=True, gc=False):
    """A table by its family (NFPROTO_*) and name."""

    family: int
    name: str


class RuleSetNotice(msgspec.Struct, frozen=True):
    """What others did since the last read.

    tables: the tables in which anything changed; empty if nothing did.
    programs: names of the processes that did it (`nft`, `firewalld`).
    lost: notices were lost, anything may have changed.
    """

    tables: frozenset[Table] = frozenset()
    programs: frozenset[str] = frozenset()
    lost: bool = False

    @property
    def ours(self) -> bool:
        """Whether one of our tables may be touched."""
        return self.lost or any(table.name == TABLE for table in self.tables)

    @property
    def others(self) -> bool:
        """Whether a table that is not ours may be touched."""
        return self.lost or any(table.name != TABLE for table in self.tables)


class RuleSetWatch(NetlinkUser):
    """A subscription to the rule set of the calling thread's network namespace, silent about `nft`'s own doing.

    Raises:
        OSError: this kernel has no netfilter netlink.
    """

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._netlink = NetlinkSocket(NETLINK_NETFILTER, groups=(_GROUP_NFTABLES,))
        ignore(self._netlink, nft.port_id)

    def fileno(self) -> int:
        """The descriptor, for `loop.add_reader`."""
        return self._netlink.fileno()

    def read(self) -> RuleSetNotice:
        """Everything noticed since the last read. Never blocks."""
        tables: set[Table] = set()
        programs: set[str] = set()
        lost = False
        while True:
            try:
                received = self._netlink.receive()
            except OverrunError:
                lost = True
                continue
            if not received:
                return RuleSetNotice(frozenset(tables), frozenset(programs), lost)
            for notice in received:
                if notice.port_id in self._nft.children:
                    continue
                if notice.type == kind(Command.NEW_GENERATION):
                    programs.add(generation(notice.payload).program)
                elif name := table_of(notice.payload):
                    tables.add(Table(notice.payload[0], name))
