"""Our element codec and the kernel, checked against what the nft command writes and shows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import msgspec
import pytest

from edgeproxy.address import parse
from edgeproxy.kernel.nft import ElementRefusedError, FrameMissingError, Nft
from edgeproxy.kernel.nft_codec import Held
from edgeproxy.kernel.nft_script import NftError, ScriptError
from edgeproxy.kernel.nft_sets import COMMENT_LIMIT, SETS, Family, comment, describe
from edgeproxy.model import Element, Protocol, SetName
from tests.lab.wait import until
from tests.native.conftest import sh

_CHAINS = ("cluster_ip4", "cluster_ip6", "external_local4", "node_port_cluster4")


def _frame() -> str:
    """Sets of the same types as the real frame, chains to go to, a rule that counts, a rule with a set of its own."""
    lines = ["add table inet edgeproxy", "add table arp edgeproxy"]
    lines += ["add set arp edgeproxy unanswered { type ipv4_addr; }"]
    for digit in (4, 6):
        ip = f"ipv{digit}_addr"
        frontend = f"{ip} . inet_proto . inet_service"
        lines += [
            f"add map inet edgeproxy frontends{digit} {{ type {frontend} : verdict; }}",
            f"add map inet edgeproxy node_ports{digit} {{ type inet_proto . inet_service : verdict; }}",
            f"add map inet edgeproxy detours{digit} {{ type {frontend} : {ip}; }}",
            f"add set inet edgeproxy addresses{digit} {{ type {ip}; }}",
            f"add set inet edgeproxy hairpin{digit} {{ type {ip} . {ip}; }}",
            f"add set inet edgeproxy sources{digit} {{ type {frontend} . {ip}; flags interval; }}",
            f"add set inet edgeproxy drains{digit} {{ type {frontend} . {ip} . inet_service; flags timeout; }}",
        ]
    lines += ["add set inet edgeproxy constant4 { type ipv4_addr; flags interval; auto-merge; }"]
    lines += ["flush set inet edgeproxy constant4", "add element inet edgeproxy constant4 { 10.96.0.0/16 }"]
    for chain in (*_CHAINS, "entry"):
        lines += [f"add chain inet edgeproxy {chain}", f"flush chain inet edgeproxy {chain}"]
    lines += [
        "add rule inet edgeproxy entry ip saddr { 192.0.2.1, 192.0.2.7 } counter drop",
        "add rule inet edgeproxy entry ip daddr . meta l4proto . th dport vmap @frontends4",
    ]
    return "\n".join((*lines, ""))


V4, V6 = parse("10.96.0.10"), parse("fd00:96::a")
B4, B6 = parse("10.1.1.2"), parse("fd01::2")
TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP

# Every set, with the words nft has for the same element.
ELEMENTS = [
    (Element(SetName.FRONTENDS4, (V4, TCP, 8000), "cluster_ip4", comment="web"),
     '10.96.0.10 . tcp . 8000 comment "web" : goto cluster_ip4'),
    (Element(SetName.FRONTENDS4, (V4, UDP, 65535), "external_local4"), "10.96.0.10 . udp . 65535 : goto external_local4"),
    (Element(SetName.FRONTENDS6, (V6, SCTP, 1), "cluster_ip6", comment="a.b-c"),
     'fd00:96::a . sctp . 1 comment "a.b-c" : goto cluster_ip6'),
    (Element(SetName.NODE_PORTS4, (TCP, 36200), "node_port_cluster4", comment="x" * COMMENT_LIMIT),
     f'tcp . 36200 comment "{"x" * COMMENT_LIMIT}" : goto node_port_cluster4'),
    (Element(SetName.NODE_PORTS6, (UDP, 30000), "cluster_ip6"), "udp . 30000 : goto cluster_ip6"),
    (Element(SetName.DETOURS4, (V4, TCP, 80), data=parse("169.254.96.9")), "10.96.0.10 . tcp . 80 : 169.254.96.9"),
    (Element(SetName.DETOURS6, (V6, TCP, 80), data=parse("fd99::9"), comment="y"),
     'fd00:96::a . tcp . 80 comment "y" : fd99::9'),
    (Element(SetName.ADDRESSES4, (V4,)), "10.96.0.10"),
    (Element(SetName.ADDRESSES6, (V6,), comment="six"), 'fd00:96::a comment "six"'),
    (Element(SetName.HAIRPIN4, (B4, B4)), "10.1.1.2 . 10.1.1.2"),
    (Element(SetName.HAIRPIN6, (B6, B6)), "fd01::2 . fd01::2"),
    (Element(SetName.SOURCES4, (V4, TCP, 80, parse("192.0.2.0")), until=(V4, TCP, 80, parse("192.0.3.9"))),
     "10.96.0.10 . tcp . 80 . 192.0.2.0-192.0.3.9"),
    (Element(SetName.SOURCES4, (V4, TCP, 80, parse("198.51.100.7")), until=(V4, TCP, 80, parse("198.51.100.7"))),
     "10.96.0.10 . tcp . 80 . 198.51.100.7"),
    (Element(SetName.SOURCES6, (V6, UDP, 53, parse("fd02::")), comment="dns",
             until=(V6, UDP, 53, parse("fd02::ffff:ffff:ffff:ffff"))),
     'fd00:96::a . udp . 53 . fd02::/64 comment "dns"'),
    (Element(SetName.DRAINS4, (V4, TCP, 80, B4, 8080)), "10.96.0.10 . tcp . 80 . 10.1.1.2 . 8080"),
    (Element(SetName.DRAINS6, (V6, TCP, 80, B6, 8080), comment="web"),
     'fd00:96::a . tcp . 80 . fd01::2 . 8080 comment "web"'),
    (Element(SetName.UNANSWERED, (V4,)), "10.96.0.10"),
]  # fmt: skip


@pytest.fixture
def nft(netns: None) -> Iterator[Nft]:
    with Nft() as opened:
        opened.load(_frame())
        yield opened


def _listing(name: SetName) -> str:
    kind = "map" if SETS[name].data else "set"
    return " ".join(sh("nft", "list", kind, SETS[name].family.word, "edgeproxy", name).split())


def _cli_elements(name: SetName) -> list[object]:
    kind = "map" if SETS[name].data else "set"
    shown = json.loads(sh("nft", "-j", "list", kind, SETS[name].family.word, "edgeproxy", name))
    elements = next(item[kind] for item in shown["nftables"] if kind in item).get("elem", [])
    return sorted(elements, key=repr)


def _wire(nft: Nft, name: SetName) -> list[Held]:
    return sorted(nft.dump(name), key=lambda held: describe(held.element))


def test_every_set_is_covered() -> None:
    assert {element.set for element, _ in ELEMENTS} == set(SETS)


def test_what_nft_adds_is_decoded(nft: Nft) -> None:
    for element, words in ELEMENTS:
        sh("nft", f"add element {SETS[element.set].family.word} edgeproxy {element.set} {{ {words} }}")
    for name in SETS:
        expected = sorted((e for e, _ in ELEMENTS if e.set == name), key=describe)
        assert [held.element for held in _wire(nft, name)] == expected


def test_what_we_add_is_what_nft_would_have_added(nft: Nft) -> None:
    for element, words in ELEMENTS:
        sh("nft", f"add element {SETS[element.set].family.word} edgeproxy {element.set} {{ {words} }}")
    by_cli = {name: _cli_elements(name) for name in SETS}
    texts = {name: _listing(name) for name in SETS}
    nft.commit([], [element for element, _ in ELEMENTS])
    assert not any(_cli_elements(name) for name in SETS)
    nft.commit([element for element, _ in ELEMENTS])
    for element, words in ELEMENTS:
        assert words in _listing(element.set)
    assert {name: _cli_elements(name) for name in SETS} == by_cli
    assert {name: sorted(_listing(name)) for name in SETS} == {
        name: sorted(shown) for name, shown in texts.items()
    }


def test_a_listing_can_be_loaded_again(nft: Nft) -> None:
    nft.commit([element for element, _ in ELEMENTS])
    before = {name: _wire(nft, name) for name in SETS}
    listing = sh("nft", "list", "ruleset")
    sh("nft", "-f", "-", script="flush ruleset\n" + listing)
    assert {name: _wire(nft, name) for name in SETS} == before


def test_adding_and_removing_twice_is_success(nft: Nft) -> None:
    elements = [element for element, _ in ELEMENTS]
    nft.commit(elements)
    nft.commit(elements)
    nft.commit([], elements)
    nft.commit([], elements)
    assert not any(nft.dump(name) for name in SETS)


def test_missing_removals_do_not_keep_the_rest_from_happening(nft: Nft) -> None:
    first, second = ELEMENTS[0][0], ELEMENTS[1][0]
    nft.commit([first])
    nft.commit([ELEMENTS[7][0]], [second, first, ELEMENTS[9][0]])
    assert not nft.dump(SetName.FRONTENDS4)
    assert [held.element for held in nft.dump(SetName.ADDRESSES4)] == [ELEMENTS[7][0]]


def test_replacing_changes_verdict_data_and_comment(nft: Nft) -> None:
    old = [ELEMENTS[0][0], ELEMENTS[5][0], ELEMENTS[11][0]]
    new = [
        Element(SetName.FRONTENDS4, old[0].key, "external_local4", comment="other"),
        Element(SetName.DETOURS4, old[1].key, data=parse("169.254.96.10")),
        Element(SetName.SOURCES4, old[2].key, until=old[2].until, comment="new"),
    ]
    nft.commit(old)
    nft.commit(new, old)
    assert [held.element for element in new for held in nft.dump(element.set)] == new


def test_other_data_for_an_existing_key_names_the_element_and_changes_nothing(nft: Nft) -> None:
    element, _ = ELEMENTS[0]
    nft.commit([element])
    others = [Element(SetName.FRONTENDS4, (V4, TCP, port), "cluster_ip4") for port in range(1, 50)]
    wrong = Element(SetName.FRONTENDS4, element.key, "external_local4")
    with pytest.raises(ElementRefusedError, match=r"adding .*set frontends4.*File exists") as caught:
        nft.commit([*others[:20], wrong, *others[20:], ELEMENTS[7][0]])
    # Kernels before 6.? do not say which element of a message it was; then none is named.
    assert caught.value.element in (wrong, None)
    assert [held.element for held in nft.dump(SetName.FRONTENDS4)] == [element]
    assert not nft.dump(SetName.ADDRESSES4)


def test_a_verdict_to_a_missing_chain(nft: Nft) -> None:
    with pytest.raises(FrameMissingError, match="nowhere"):
        nft.commit([Element(SetName.FRONTENDS4, (V4, TCP, 80), "nowhere")])


def test_a_missing_table(nft: Nft) -> None:
    sh("nft", "delete table inet edgeproxy")
    with pytest.raises(FrameMissingError, match="set addresses4 of table inet edgeproxy is not there"):
        nft.commit([ELEMENTS[7][0]])
    with pytest.raises(FrameMissingError):
        nft.dump(SetName.ADDRESSES6)
    with pytest.raises(FrameMissingError):
        nft.commit([], [ELEMENTS[7][0]])


def test_each_table_is_told_by_its_family(nft: Nft) -> None:
    assert nft.tables() == (Family.INET, Family.ARP)
    sh("nft", "delete table inet edgeproxy; add table ip edgeproxy; add table inet other")
    assert nft.tables() == (Family.ARP,)
    with pytest.raises(FrameMissingError, match="set addresses4 of table inet edgeproxy"):
        nft.commit([Element(SetName.UNANSWERED, (V4,)), ELEMENTS[7][0]])
    assert not nft.dump(SetName.UNANSWERED), "a transaction over both tables is all or nothing"
    sh("nft", "delete table arp edgeproxy")
    assert nft.tables() == ()
    with pytest.raises(FrameMissingError, match="set unanswered of table arp edgeproxy"):
        nft.dump(SetName.UNANSWERED)


def test_elements_that_do_not_fit_are_refused_before_the_kernel(nft: Nft) -> None:
    for bad in (
        Element(SetName.FRONTENDS4, (V6, TCP, 80), "cluster_ip4"),
        Element(SetName.FRONTENDS4, (V4, TCP, 65536), "cluster_ip4"),
        Element(SetName.FRONTENDS4, (V4, TCP), "cluster_ip4"),
        Element(SetName.FRONTENDS4, (V4, TCP, 80)),
        Element(SetName.SOURCES4, (V4, TCP, 80, V4)),
        Element(SetName.ADDRESSES4, (V4,), until=(V4,)),
        Element(SetName.ADDRESSES4, (V4,), comment="x" * (COMMENT_LIMIT + 1)),
        Element(SetName.DETOURS4, (V4, TCP, 80), data=V6),
        Element(SetName.HAIRPIN6, (V6, V4)),
    ):
        with pytest.raises(ValueError, match=bad.set):
            nft.commit([bad])


def test_every_set_carries_the_longest_comment(nft: Nft) -> None:
    elements = [msgspec.structs.replace(element, comment=comment("n" * 253)) for element, _ in ELEMENTS]
    nft.commit(elements)
    assert {held.element for name in SETS for held in nft.dump(name)} == set(elements)
    assert all(_listing(name).count("n" * COMMENT_LIMIT) for name in SETS)


def test_timeouts(nft: Nft) -> None:
    long, short, forever = (
        Element(SetName.DRAINS4, (V4, TCP, 80, B4, port), comment="web") for port in (1, 2, 3)
    )
    nft.commit([long, short, forever], timeouts={long: 300, short: 0.2})
    shown = _listing(SetName.DRAINS4)
    assert "10.1.1.2 . 1 timeout 5m expires 4m59s" in shown or "10.1.1.2 . 1 timeout 5m expires 5m" in shown
    remaining = {held.element: held.remaining for held in nft.dump(SetName.DRAINS4)}
    assert remaining[forever] is None
    assert 290 < (remaining[long] or 0) <= 300
    deadline = time.monotonic() + 30
    while short in (present := {held.element for held in nft.dump(SetName.DRAINS4)}):
        assert time.monotonic() < deadline, "an element outlived its timeout"
    assert present == {long, forever}
    nft.commit([long], [long], timeouts={long: 900})
    remaining = {held.element: held.remaining for held in nft.dump(SetName.DRAINS4)}
    assert 800 < (remaining[long] or 0) <= 900


def test_verdicts_of_others_never_equal_ours(nft: Nft) -> None:
    sh(
        "nft",
        "add element inet edgeproxy frontends4 { 10.0.0.1 . tcp . 1 : drop, 10.0.0.1 . tcp . 2 : jump cluster_ip4 }",
    )
    verdicts = {held.element.key[2]: held.element.verdict for held in nft.dump(SetName.FRONTENDS4)}
    assert verdicts == {1: "drop", 2: "jump cluster_ip4"}


def test_generation_tells_others_from_us(nft: Nft) -> None:
    assert nft.disturbed()
    nft.accept(nft.generation().number)
    assert not nft.disturbed()
    nft.commit([ELEMENTS[0][0]])
    nft.commit([ELEMENTS[0][0]])
    nft.commit([], [ELEMENTS[0][0]])
    nft.load(_frame())
    assert not nft.disturbed()
    sh("nft", "add table inet other")
    assert nft.disturbed()
    nft.commit([ELEMENTS[0][0]])
    assert nft.disturbed(), "a commit of ours must not hide a change of others"
    nft.accept(nft.generation().number)
    nft.commit([], [ELEMENTS[0][0]])
    assert not nft.disturbed()


def test_fingerprint_is_of_the_frame_alone(nft: Nft) -> None:
    frame = nft.fingerprint()
    assert frame is not None
    nft.commit([element for element, _ in ELEMENTS])
    sh("nft", "add table inet other")
    nft.load(_frame())
    nft.load(_frame())
    assert nft.fingerprint() == frame
    sh("nft", "delete table inet edgeproxy; delete table arp edgeproxy")
    assert nft.fingerprint() is None
    nft.load(_frame())
    assert nft.fingerprint() == frame


@pytest.mark.parametrize(
    "change",
    [
        "flush chain inet edgeproxy entry",
        "add rule inet edgeproxy cluster_ip4 drop",
        "insert rule inet edgeproxy entry ip saddr { 192.0.2.1 } drop",
        "add chain inet edgeproxy extra",
        "add set inet edgeproxy extra { type ipv4_addr; }",
        "add element inet edgeproxy constant4 { 10.97.0.0/16 }",
        "flush set inet edgeproxy constant4",
        "delete table arp edgeproxy",
        "add table inet edgeproxy { flags dormant; }",
        "replace rule inet edgeproxy entry handle HANDLE ip saddr { 192.0.2.1, 192.0.2.8 } counter drop",
    ],
)
def test_fingerprint_sees_every_change_of_the_frame(nft: Nft, change: str) -> None:
    before = nft.fingerprint()
    handle = next(
        line.rpartition(" ")[2]
        for line in sh("nft", "-a", "list", "chain", "inet", "edgeproxy", "entry").splitlines()
        if "192.0.2.7" in line
    )
    sh("nft", change.replace("HANDLE", handle))
    assert nft.fingerprint() != before


def test_script_errors_name_the_line(nft: Nft) -> None:
    with pytest.raises(ScriptError, match=r"line 2 \(add rule inet edgeproxy entry frobnicate\)") as caught:
        nft.load("add table inet half\nadd rule inet edgeproxy entry frobnicate\n")
    assert caught.value.line == 2
    assert "half" not in sh("nft", "list", "tables")
    with pytest.raises(ScriptError):
        nft.check("add rule inet edgeproxy nowhere drop")
    nft.check("add table inet dry")
    assert "dry" not in sh("nft", "list", "tables")


def test_no_nft_command(nft: Nft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NftError, match="install nftables"):
        nft.load("")


def test_a_hanging_nft_is_stopped(
    nft: Nft, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    fake = os.path.join(tmp_path, "nft")
    with open(fake, "w", encoding="ascii") as file:
        file.write("#!/bin/sh\nexec /bin/sleep 600\n")
    os.chmod(fake, 0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NftError, match="was stopped"):
        nft.load("", seconds=0.2)


def test_twenty_thousand_elements(nft: Nft, capsys: pytest.CaptureFixture[str]) -> None:
    count = 20_000
    elements = [
        Element(
            SetName.FRONTENDS4,
            (parse(f"10.96.{i >> 8}.{i & 255}"), TCP, 8000),
            "cluster_ip4",
            comment=f"service-{i}",
        )
        for i in range(count)
    ]
    times: dict[str, float] = {}

    def timed(name: str, begin: float) -> None:
        times[name] = (time.perf_counter() - begin) * 1000

    begin = time.perf_counter()
    nft.commit(elements)
    timed("add", begin)
    # While the kernel makes the set's hash table larger, in the background, a list leaves out elements.
    until(lambda: len(nft.dump(SetName.FRONTENDS4)) == count, 20, "the kernel lists all elements")
    begin = time.perf_counter()
    held = nft.dump(SetName.FRONTENDS4)
    timed("dump", begin)
    begin = time.perf_counter()
    sh("nft", "-j", "list", "map", "inet", "edgeproxy", "frontends4")
    timed("nft -j list", begin)
    begin = time.perf_counter()
    nft.commit(elements[:1], elements[:1])
    timed("replace one", begin)
    begin = time.perf_counter()
    nft.commit([], elements[1:])
    timed("remove", begin)
    assert {one.element for one in held} == set(elements)
    assert [one.element for one in nft.dump(SetName.FRONTENDS4)] == elements[:1]
    with capsys.disabled():
        print(
            f"\n{count} elements, milliseconds: "
            + ", ".join(f"{name} {ms:.1f}" for name, ms in times.items())
        )
