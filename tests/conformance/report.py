"""docs/conformance.md, from the results of the tests, the tests themselves and the catalogue."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from tests.conformance.behaviour import Behaviour, Result
from tests.conformance.catalogue import ALL, INAPPLICABLE, SECTIONS, number_of

HERE = Path(__file__).parent
PASSED = "passed"
INTRODUCTION = """\
# Conformance

What edgeproxy does, behaviour by behaviour, against kube-proxy's semantics: endpoint selection, traffic
policies, node ports, external addresses, affinity, drains, health. The numbers (`KP-070`) group the behaviours
that kube-proxy's own tests, its documentation and its issue tracker state; a gap in the numbers is a behaviour that
was withdrawn from the list. `tests/conformance/` holds at least one test for each, named by its number.

This file is generated, by `make lab-test ARGS=tests/conformance` and `python -m tests.conformance` after it. A
*packets* test sends packets through the kernel of the lab's machine; a *pure* one runs the engine on a kernel in
memory. The last column says what kube-proxy's IPVS mode does where it differs: the reference is what its
documentation specifies, not what that mode does.
"""


class Shown(msgspec.Struct, frozen=True):
    """A test in a file, and what it shows."""

    module: str
    test: str
    behaviour: Behaviour


def tests() -> tuple[Shown, ...]:
    """All `@kp` tests, read from the source: nothing is imported, nothing runs."""
    return tuple(
        Shown(path.stem, function.name, behaviour)
        for path in sorted(HERE.glob("test_*.py"))
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for decorator in function.decorator_list
        if (behaviour := _behaviour(decorator))
    )


def results(directory: Path) -> dict[tuple[str, str], list[Result]]:
    """What the last runs left behind, by module and name of the test (its parameters left out)."""
    found: dict[tuple[str, str], list[Result]] = {}
    for path in sorted(directory.glob("conformance-test_*.json")):
        module = path.stem.removeprefix("conformance-")
        for result in msgspec.json.decode(path.read_bytes(), type=list[Result]):
            test = result.test.rpartition("::")[2].partition("[")[0]
            found.setdefault((module, test), []).append(result)
    return found


def gaps(shown: Sequence[Shown]) -> list[str]:
    """Numbers of the catalogue that are left out or said twice, and numbers that are not in it."""
    tested = {each.behaviour.number for each in shown}
    return [
        *(f"{n}: neither tested nor explained" for n in ALL if n not in tested | INAPPLICABLE.keys()),
        *(f"{n}: tested, and called not applicable" for n in sorted(tested & INAPPLICABLE.keys())),
        *(f"{n}: not in the catalogue" for n in sorted((tested | INAPPLICABLE.keys()) - set(ALL))),
    ]


def failures(shown: Sequence[Shown], outcomes: Mapping[tuple[str, str], Sequence[Result]]) -> list[str]:
    """Tests that did not pass in their last run, or did not run."""
    return [
        f"{each.behaviour.number}: {each.module}.{each.test}: {state}"
        for each in shown
        if (state := _state(each, outcomes)) != PASSED
    ]


def render(shown: Sequence[Shown], outcomes: Mapping[tuple[str, str], Sequence[Result]]) -> str:
    """The document."""
    tested = {each.behaviour.number for each in shown}
    passed = tested - {each.behaviour.number for each in shown if _state(each, outcomes) != PASSED}
    figures = f"{len(ALL)} behaviours: {len(passed)} passed, {len(INAPPLICABLE)} not applicable"
    figures += f", {len(tested - passed)} not passed.\n" if tested - passed else ".\n"
    parts = [INTRODUCTION, figures]
    for section in SECTIONS:
        parts.append(f"## {section.title}\n")
        rows = [line for number in section.numbers for line in _rows(number_of(number), shown, outcomes)]
        head = ["| number | behaviour | outcome | kube-proxy's IPVS mode |", "|---|---|---|---|"]
        parts.append("\n".join([*head, *rows]) + "\n")
    return "\n".join(parts)


def _rows(
    number: str, shown: Sequence[Shown], outcomes: Mapping[tuple[str, str], Sequence[Result]]
) -> Iterator[str]:
    absent = INAPPLICABLE.get(number)
    if absent:
        yield f"| {number} | {_cell(absent.text)} | not applicable: {_cell(absent.reason)} | |"
    for each in shown:
        behaviour = each.behaviour
        if behaviour.number == number:
            kind = "pure" if each.module.startswith("test_pure_") else "packets"
            outcome = f"{_state(each, outcomes)} ({kind})"
            yield f"| {number} | {_cell(behaviour.text)} | {outcome} | {_cell(behaviour.differs)} |"


def _state(test: Shown, outcomes: Mapping[tuple[str, str], Sequence[Result]]) -> str:
    """The worst outcome of a test's parameters."""
    results = [r for r in outcomes.get((test.module, test.test), ()) if r.behaviour == test.behaviour]
    if not results:
        return "not run"
    return next((r.outcome for r in results if r.outcome != PASSED), PASSED)


def _behaviour(decorator: ast.expr) -> Behaviour | None:
    """What `@kp("KP-070", "text", differs="...")` says; its arguments are literals."""
    if not (isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name)):
        return None
    if decorator.func.id != "kp":
        return None
    number, text = (ast.literal_eval(argument) for argument in decorator.args)
    differs = {word.arg: ast.literal_eval(word.value) for word in decorator.keywords}.get("differs", "")
    return Behaviour(number, text, differs)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
