"""The fleet that all tests here share, and the plugin that writes down what they showed."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.conformance.behaviour import MARK, Result, behaviours
from tests.conformance.fleet import Fleet
from tests.lab.image import ROOT
from tests.lab.kernel import has_ip_vs

RESULTS = pytest.StashKey[list[tuple[str, Result]]]()
PARTIAL = pytest.StashKey[bool]()
"""Whether single tests were chosen: such a run says nothing about the rest of their files."""


@pytest.fixture(scope="session")
def running_fleet() -> Iterator[Fleet]:
    """Two proxy hosts with running daemons; started once for all files."""
    if not has_ip_vs():
        pytest.skip("needs root and a kernel with ip_vs: `make lab-test ARGS=tests/conformance`")
    with Fleet() as fleet:
        yield fleet


@pytest.fixture
def fleet(running_fleet: Fleet) -> Iterator[Fleet]:
    """The shared fleet; what a test wrote into the store is deleted after it."""
    yield running_fleet
    running_fleet.forget()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}(behaviour): a behaviour of the catalogue that the test shows")
    config.stash[RESULTS] = []
    config.stash[PARTIAL] = any("::" in argument for argument in config.args)


def pytest_deselected(items: list[pytest.Item]) -> None:
    items[0].config.stash[PARTIAL] = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        note = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        for behaviour in behaviours(item):
            item.config.stash[RESULTS].append(
                (item.path.stem, Result(item.nodeid, behaviour, report.outcome, note))
            )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One file of results for each file of tests, so that files may be run one by one, but whole."""
    if session.config.stash[PARTIAL] or session.shouldstop or session.shouldfail:
        return
    directory = Path(os.environ.get("LAB_RESULTS", ROOT / ".cache" / "results"))
    modules: dict[str, list[Result]] = {}
    for module, result in session.config.stash[RESULTS]:
        modules.setdefault(module, []).append(result)
    for module, results in modules.items():
        if all(result.outcome == "skipped" for result in results):
            continue
        directory.mkdir(parents=True, exist_ok=True)
        encoded = msgspec.json.format(msgspec.json.encode(results))
        (directory / f"conformance-{module}.json").write_bytes(encoded)
