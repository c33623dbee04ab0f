"""Base chains of other programs that drop or reject by default: read, never changed.

A verdict of ours cannot overrule another table's drop, so traffic we serve needs their consent. Two
forms are recognised: the policy `drop` (iptables-nft, Docker's FORWARD, ufw) and a last rule that drops
or rejects everything (firewalld). Tables of iptables-legacy do not show up here.

Sources: include/uapi/linux/netfilter/nf_tables.h; enum nft_registers and NFT_JUMP/NF_DROP verdicts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

import msgspec

from edgeproxy.kernel.netlink import (
    Flag,
    NetlinkError,
    answer,
    attributes,
    big_endian,
    message,
    text,
    walk,
)
from edgeproxy.kernel.netlink_socket import NETLINK_NETFILTER, NetlinkSocket
from edgeproxy.kernel.nft_sets import TABLE

_GET_CHAIN, _GET_RULE = (10 << 8 | command for command in (4, 7))
_UNSPECIFIED = bytes(4)
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_HOOK_NUMBER = 1
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_IMMEDIATE_DATA, _DATA_VERDICT, _VERDICT_CODE = 2, 2, 1
_DROP = 0


class Hook(enum.IntEnum):
    """NF_INET_*: where packets we serve meet filters of others."""

    INPUT = 1
    FORWARD = 2
    OUTPUT = 3


class ClosedChain(msgspec.Struct, frozen=True, order=True):
    """A base chain that lets nothing pass unless a rule of it says so.

    by: `policy drop`, or what its last rule does.
    """

    family: str
    table: str
    name: str
    hook: Hook
    by: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name} ({self.hook.name.lower()} hook, {self.by})"


def closed_chains() -> tuple[ClosedChain, ...]:
    """All of them in the network namespace of the calling thread, ours left out.

    Raises:
        NetlinkError, OSError: the kernel refused.
    """
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        chains = _dump(netlink, _GET_CHAIN)
        rules = _dump(netlink, _GET_RULE)
    return tuple(sorted(judge(chains, rules)))


def judge(chains: Iterable[bytes], rules: Iterable[bytes]) -> Iterator[ClosedChain]:
    """The closed ones among dumped chains, given all dumped rules in order."""
    last: dict[tuple[int, str, str], str] = {}
    for payload in rules:
        fields = attributes(payload, 4)
        key = (payload[0], text(fields[_RULE_TABLE]), text(fields[_RULE_CHAIN]))
        last[key] = _closes(fields.get(_RULE_EXPRESSIONS, b""))
    for payload in chains:
        fields = attributes(payload, 4)
        family, hook = _FAMILIES.get(payload[0]), fields.get(_CHAIN_HOOK)
        table, name = text(fields[_CHAIN_TABLE]), text(fields[_CHAIN_NAME])
        if family is None or hook is None or table == TABLE:
            continue
        number = big_endian(attributes(hook).get(_HOOK_NUMBER, b""))
        if number not in set(Hook) or text(fields.get(_CHAIN_TYPE, b"")) != "filter":
            continue
        by = last.get((payload[0], table, name), "")
        if _CHAIN_POLICY in fields and big_endian(fields[_CHAIN_POLICY]) == _DROP:
            by = "policy drop"
        if by:
            yield ClosedChain(family, table, name, Hook(number), by)


def _closes(listed: bytes) -> str:
    """What a rule does to every packet, "" if it has a condition or lets packets pass."""
    did = ""
    for _, expression in walk(listed):
        fields = attributes(expression)
        match text(fields.get(_EXPRESSION_NAME, b"")):
            case "counter" | "log":
                continue
            case "reject":
                did = "its last rule rejects"
            case "immediate":
                data = attributes(attributes(fields[_EXPRESSION_DATA]).get(_IMMEDIATE_DATA, b""))
                verdict = attributes(data.get(_DATA_VERDICT, b""))
                if big_endian(verdict.get(_VERDICT_CODE, b"\1")) != _DROP:
                    return ""
                did = "its last rule drops"
            case _:
                return ""
    return did


def _dump(netlink: NetlinkSocket, kind: int) -> list[bytes]:
    (sequence,) = netlink.sequences()
    replies = netlink.exchange(message(kind, Flag.REQUEST | Flag.DUMP, sequence, _UNSPECIFIED), (sequence,))
    found = []
    for reply in replies:
        said = answer(reply)
        if said is None:
            found.append(reply.payload)
        elif said.errno:
            raise NetlinkError(f"listing the chains of other programs: {said}")
    return found
