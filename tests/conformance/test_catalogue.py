"""No behaviour is silently left out."""

from __future__ import annotations

from tests.conformance import report
from tests.conformance.behaviour import Behaviour, Result
from tests.conformance.catalogue import ALL, INAPPLICABLE
from tests.conformance.report import Shown

ONE = Shown("test_one", "test_kp_001_a", Behaviour("KP-001", "a | b"))


def test_every_number_is_tested_or_explained() -> None:
    assert report.gaps(report.tests()) == []


def test_every_test_is_named_by_one_of_its_numbers() -> None:
    numbers: dict[str, set[str]] = {}
    for each in report.tests():
        numbers.setdefault(each.test, set()).add(f"test_kp_{each.behaviour.number[3:]}")
    assert [test for test, named in numbers.items() if not test.startswith(tuple(named))] == []


def test_gaps_names_what_is_missing_foreign_or_contradictory() -> None:
    explained = next(iter(INAPPLICABLE))
    strange = [Shown("m", "t", Behaviour(number, "")) for number in ("KP-999", explained)]
    found = report.gaps(strange)
    assert "KP-999: not in the catalogue" in found
    assert f"{explained}: tested, and called not applicable" in found
    missing = len(ALL) - len(INAPPLICABLE)
    assert sum("neither tested nor explained" in line for line in found) == missing


def test_a_result_counts_for_the_test_and_behaviour_it_belongs_to() -> None:
    key = ("test_one", "test_kp_001_a")
    passed = Result("x::test_kp_001_a[4]", ONE.behaviour, "passed")
    failed = Result("x::test_kp_001_a[6]", ONE.behaviour, "failed")
    former = Result("x::test_kp_001_a[4]", Behaviour("KP-001", "another"), "passed")
    assert report.failures([ONE], {key: [passed]}) == []
    assert report.failures([ONE], {key: [passed, failed]}) == ["KP-001: test_one.test_kp_001_a: failed"]
    assert report.failures([ONE], {key: [former]}) == ["KP-001: test_one.test_kp_001_a: not run"]
    assert "| KP-001 | a \\| b | passed (packets) |  |" in report.render([ONE], {key: [passed]})
