"""Notices of what others do to the rule set, and silence about ourselves."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest

from edgeproxy.address import parse
from edgeproxy.kernel.nft import Nft
from edgeproxy.kernel.nft_events import RuleSetWatch, Table
from edgeproxy.kernel.nft_sets import Family
from edgeproxy.model import Element, SetName
from tests.native.conftest import sh

OURS = Table(Family.INET, "edgeproxy")
ELEMENT = Element(SetName.ADDRESSES4, (parse("10.96.0.10"),))
FRAME = """
add table inet edgeproxy
add table arp edgeproxy
add set inet edgeproxy addresses4 { type ipv4_addr; }
"""


@pytest.fixture
def watched(netns: None) -> Iterator[tuple[Nft, RuleSetWatch]]:
    with Nft() as nft, RuleSetWatch(nft) as watch:
        yield nft, watch


def _readable(watch: RuleSetWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


def test_our_own_doing_makes_no_notice(watched: tuple[Nft, RuleSetWatch]) -> None:
    nft, watch = watched
    nft.load(FRAME)
    assert not watch.read().ours
    nft.commit([ELEMENT])
    nft.commit([], [ELEMENT])
    assert not _readable(watch), "our commits must not even wake the daemon"


def test_others_are_noticed_by_table_and_program(watched: tuple[Nft, RuleSetWatch]) -> None:
    nft, watch = watched
    nft.load(FRAME)
    watch.read()
    sh("nft", "add table ip other")
    notice = watch.read()
    assert (notice.ours, notice.others) == (False, True)
    assert notice.programs == {"nft"}
    sh("nft", "add element inet edgeproxy addresses4 { 10.96.0.10 }")
    assert watch.read().tables == {OURS}
    sh("nft", "flush set inet edgeproxy addresses4")
    assert watch.read().tables == {OURS}
    sh("nft", "delete table arp edgeproxy")
    assert watch.read().tables == {Table(Family.ARP, "edgeproxy")}
    sh("nft", "flush ruleset")
    assert OURS in watch.read().tables
    assert not watch.read().tables


def test_lost_notices_count_as_any_change(watched: tuple[Nft, RuleSetWatch]) -> None:
    nft, watch = watched
    nft.load(FRAME)
    watch.read()
    octets = [f"10.{a}.{b}.{c}" for a in range(1, 4) for b in range(256) for c in range(256)]
    sh("nft", "-f", "-", script=f"add element inet edgeproxy addresses4 {{ {', '.join(octets)} }}\n")
    notice = watch.read()
    assert notice.lost
    assert notice.ours
    assert notice.others
    assert not watch.read().lost
