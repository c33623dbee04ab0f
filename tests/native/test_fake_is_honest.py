"""The imaginary tables of tests/fake_kernel.py refuse, keep and forget what the real ones do."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeproxy.address import parse, parse_network
from edgeproxy.kernel.nft import ElementRefusedError, Nft
from edgeproxy.kernel.nft_sets import SETS
from edgeproxy.kernel.ruleset import render
from edgeproxy.model import Element, Protocol, SetName
from edgeproxy.surroundings import survey
from tests.fake_kernel import FakeKernel, FakeNft
from tests.unit.site import FACTS, SETTINGS

VIP = parse("10.96.0.10")
WEB = (VIP, Protocol.TCP, 80)
SCRIPT = render(survey(SETTINGS, FACTS).frame)


def ranged(cidr: str) -> Element:
    network = parse_network(cidr)
    return Element(SetName.SOURCES4, (*WEB, network.address), until=(*WEB, network.last), comment="web")


ELEMENTS = [
    Element(SetName.FRONTENDS4, WEB, "cluster_ip4", comment="web"),
    Element(SetName.FRONTENDS4, WEB, "cluster_ip_silent4", comment="web"),
    Element(SetName.FRONTENDS4, WEB, "cluster_ip4", comment="other"),
    Element(SetName.ADDRESSES4, (VIP,)),
    Element(SetName.DETOURS4, WEB, data=parse("169.254.96.3")),
    Element(SetName.DETOURS4, WEB, data=parse("169.254.96.4")),
    Element(SetName.UNANSWERED, (VIP,)),
    *map(ranged, ("10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16", "10.255.0.0/16", "11.0.0.0/8")),
]
COMMITS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(ELEMENTS), max_size=3, unique_by=lambda e: (e.set, e.key, e.until)),
        st.lists(st.sampled_from(ELEMENTS), max_size=3, unique_by=lambda e: (e.set, e.key, e.until)),
    ),
    min_size=1,
    max_size=6,
)


def dump(nft: Nft) -> set[Element]:
    return {held.element for name in SETS for held in nft.dump(name)}


def refused(nft: Nft, adds: list[Element], removes: list[Element]) -> bool:
    try:
        nft.commit(adds, removes)
    except ElementRefusedError:
        return True
    return False


@pytest.fixture
def real(netns: None) -> Nft:
    nft = Nft()
    nft.load(SCRIPT)
    return nft


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(commits=COMMITS)
def test_same_commits_same_elements(real: Nft, commits: list[tuple[list[Element], list[Element]]]) -> None:
    real.commit([], sorted(dump(real), key=repr))
    fake = FakeNft(FakeKernel())
    fake.load(SCRIPT)
    for adds, wished in commits:
        # Asked to delete a range that is not there, the kernel deletes one that holds its beginning
        # (nft_pipapo_deactivate looks up the key alone). The engine deletes only what it knows is there.
        removes = [element for element in wished if not element.until or element in dump(fake)]
        assert refused(fake, adds, removes) == refused(real, adds, removes), (adds, removes)
        assert dump(fake) == dump(real)


def test_a_generation_for_each_change_and_none_of_our_own_disturbs(real: Nft) -> None:
    kernel = FakeKernel()
    fake = FakeNft(kernel)
    fake.load(SCRIPT)
    for nft in (fake, real):
        nft.accept(nft.generation().number)
        nft.commit(ELEMENTS[:1])
        assert not nft.disturbed()
        nft.load(SCRIPT)
        assert not nft.disturbed()
        assert dump(nft) == set(ELEMENTS[:1]), "loading a frame keeps the elements"
    Nft().commit([], ELEMENTS[:1])
    FakeNft(kernel).commit([], ELEMENTS[:1])
    assert fake.disturbed()
    assert real.disturbed()


def test_a_deadline_is_that_of_the_element_that_replaced_the_other(real: Nft) -> None:
    drain = Element(SetName.DRAINS4, (*WEB, parse("10.1.1.2"), 8080))
    fake = FakeNft(FakeKernel())
    fake.load(SCRIPT)
    for nft in (fake, real):
        nft.commit([drain], timeouts={drain: 300.0})
        (held,) = nft.dump(SetName.DRAINS4)
        assert held.remaining == pytest.approx(300, abs=5)
        nft.commit([drain], [drain], timeouts={drain: 900.0})
        (held,) = nft.dump(SetName.DRAINS4)
        assert held.remaining == pytest.approx(900, abs=5)
