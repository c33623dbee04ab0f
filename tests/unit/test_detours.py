"""Who gets which anchor, and that flows find it again."""

from __future__ import annotations

from edgeproxy.address import parse, parse_network, text
from edgeproxy.detours import FIRST, Detours

ONE, TWO, THREE = (parse(f"192.0.2.{n}") for n in (1, 2, 3))
SIX = parse("2001:db8::1")


def detours(cidr: str = "169.254.96.0/29") -> Detours:
    return Detours((parse_network(cidr), parse_network("fd96::/64")))


def shown(found: Detours) -> dict[str, str]:
    return {text(external): text(anchor) for external, anchor in found.items()}


def test_the_lowest_free_one_of_the_family_beyond_those_of_node_ports() -> None:
    found = detours()
    assert found.allot([ONE, SIX])
    assert found.allot([ONE, TWO])
    assert FIRST == 3
    assert shown(found) == {
        "192.0.2.1": "169.254.96.3",
        "192.0.2.2": "169.254.96.4",
        "2001:db8::1": "fd96::3",
    }


def test_a_release_frees_an_anchor_and_moves_no_other() -> None:
    found = detours()
    found.allot([ONE, TWO])
    found.release([ONE])
    found.allot([THREE])
    assert shown(found) == {"192.0.2.2": "169.254.96.4", "192.0.2.3": "169.254.96.3"}


def test_what_the_kernel_remembers_is_kept() -> None:
    found = detours()
    found.adopt(TWO, parse("169.254.96.3"))
    found.allot([ONE, TWO])
    assert shown(found) == {"192.0.2.2": "169.254.96.3", "192.0.2.1": "169.254.96.4"}


def test_an_anchor_that_is_none_or_is_taken_is_not_adopted() -> None:
    found = detours()
    found.adopt(ONE, parse("10.1.1.1"))
    found.adopt(ONE, parse("169.254.96.5"))
    found.adopt(TWO, parse("169.254.96.5"))
    assert shown(found) == {"192.0.2.1": "169.254.96.5"}


def test_those_that_are_left_over_get_none_but_the_others_do() -> None:
    found = detours("169.254.96.0/29")
    addresses = [parse(f"192.0.2.{n}") for n in range(1, 10)]
    assert not found.allot(addresses)
    assert shown(found) == {f"192.0.2.{n}": f"169.254.96.{n + 2}" for n in range(1, 5)}, "not the last one"
    assert len(found) == 4
    assert found.allot([SIX])


def test_adopting_anew_is_no_second_allotment() -> None:
    found = detours()
    found.allot([ONE])
    found.adopt(ONE, parse("169.254.96.3"))
    found.adopt(ONE, parse("169.254.96.4"))
    found.release([ONE])
    assert found.allot([TWO])
    assert shown(found) == {"192.0.2.2": "169.254.96.3"}
    assert found.allot([THREE])
    assert shown(found)["192.0.2.3"] == "169.254.96.4"
