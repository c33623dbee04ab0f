"""What the documents and examples say is so: examples are good, names and numbers are the program's."""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click import Command, Context

from edgeproxy.check import Report, check_files, judge
from edgeproxy.cli import cli
from edgeproxy.config import load, parse
from edgeproxy.etcd.changes import KeyValue
from edgeproxy.etcd.health import StoreHealth
from edgeproxy.metrics import Metrics
from edgeproxy.model import Reason
from edgeproxy.record_files import read_files
from edgeproxy.record_json import WireEndpoint, WirePort, WireService
from edgeproxy.settings import SECTIONS, Settings
from edgeproxy.status import Status
from edgeproxy.tuning import wanted

TREE = Path(__file__).parents[2]
DOCUMENTS = [TREE / "README.md", *sorted((TREE / "docs").glob("*.md"))]
RECORDS = sorted((TREE / "examples" / "records").glob("*.json"))
WALK_THROUGH = TREE / "examples" / "walk-through.sh"
# The contract's words.
PUTS = [
    """etcdctl put /services/web '{"clusterIP":"10.96.0.10","ports":[{"port":8000,"targetPort":80,"nodePort":36200}]}'""",
    """etcdctl put /services/web/endpoints/a '{"address":"10.1.1.2"}'""",
    "etcdctl put /services/web/endpoints/b 10.1.2.2:80",
]
IMPORT_NAMES = {
    "grpcio": "grpc",
    "prometheus-client": "prometheus_client",
    "protobuf": "google",
    "systemd-python": "systemd",
}


def document(name: str) -> str:
    return (TREE / name).read_text()


def fenced(language: str) -> Iterator[tuple[str, str]]:
    """(document, content) of each fenced block of a language."""
    for path in DOCUMENTS:
        for block in re.findall(rf"(?ms)^```{language}\n(.*?)^```$", path.read_text()):
            yield path.name, block


def commands(program: str) -> Iterator[str]:
    """Command lines of a program: lines of indented blocks, and words in backquotes."""
    for path in DOCUMENTS:
        text = path.read_text()
        found = re.findall(rf"(?m)^    ({program} .*)$", text) + re.findall(rf"`({program} [^`]+)`", text)
        for line in found:
            yield re.sub(r"\s+#.*", "", line)


def settings() -> Settings:
    return load(TREE / "examples" / "edgeproxy.toml")


# -- examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_example_records_are_good(path: Path) -> None:
    report = check_files([path], settings())

    assert report.findings == ()
    assert report.services
    assert report.endpoints >= 2


def test_example_records_do_not_conflict_with_each_other() -> None:
    assert check_files(RECORDS, settings()).findings == ()


def test_the_readme_lists_every_example() -> None:
    listed = re.findall(r"(?m)^\| `([a-z-]+\.json)` \|", document("README.md"))

    assert sorted(listed) == [path.name for path in RECORDS]


def test_the_walk_through_is_the_contracts_word_for_word() -> None:
    assert [*re.findall(r"(?m)^etcdctl .*", WALK_THROUGH.read_text())] == PUTS
    assert re.findall(r"(?m)^    (etcdctl put .*)", document("README.md")) == PUTS


def test_the_walk_through_is_served() -> None:
    records = []
    for number, line in enumerate(PUTS, 1):
        _, _, key, value = shlex.split(line)
        records.append(KeyValue(key.encode(), value.encode(), number, number))

    report = judge("walk-through", records, 3, settings())

    assert report == Report("walk-through", 3, 1, 2, ())


# -- blocks and commands in documents --------------------------------------------------------------


@pytest.mark.parametrize(("name", "block"), [*fenced("json")])
def test_json_blocks_are_good_records(name: str, block: str) -> None:
    found = read_files([(name, block.encode())], "/services/")

    assert found.findings == ()
    assert judge(name, found.records, 1, settings()).findings == ()


@pytest.mark.parametrize(("name", "block"), [*fenced("toml")])
def test_toml_blocks_are_good_configurations(name: str, block: str) -> None:
    assert parse(block, name) != Settings()


def test_there_are_blocks_to_test() -> None:
    assert len([*fenced("json")]) >= 2
    assert [*fenced("toml")]


@pytest.mark.parametrize("line", sorted(set(commands("edgeproxy"))))
def test_documented_commands_exist(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = cli.get_command(Context(cli), name)

    assert isinstance(command, Command), line
    with command.make_context(name, words):  # raises UsageError for an option that is none
        pass


def test_an_unknown_option_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        cli.commands["status"].make_context("status", ["--yaml"])


def test_every_command_is_documented() -> None:
    said = {line.split()[1] for line in commands("edgeproxy")}

    assert set(cli.commands) <= said | {"uncordon"}
    assert "`edgeproxy uncordon`" in document("docs/operations.md")


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", document("Makefile")))

    for line in commands("make"):
        assert line.split()[1] in targets, line


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", path.read_text()):
            there = (path.parent / target) if target else path
            assert there.exists(), f"{path.name}: {target}"
            if anchor:
                heads = re.findall(r"(?m)^#+ (.*)$", there.read_text())
                slugs = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}
                assert anchor[1:] in slugs, f"{path.name}: {target}{anchor}"


# -- names -----------------------------------------------------------------------------------------


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    status = Status(
        version="1",
        node="n",
        pid=1,
        uptime=0,
        revision=0,
        revision_seen=0,
        ready=True,
        healthy=True,
        cordoned=False,
        services=0,
        endpoints=0,
    )
    page = Metrics(lambda: status, lambda: StoreHealth()).page().body.decode()
    names = set(re.findall(r"(?m)^# TYPE (\w+)", page))
    text = document("docs/operations.md").partition("### Metrics")[2].partition("\n## ")[0]

    assert set(re.findall(r"\bedgeproxy_\w+", text)) == names


def test_every_reason_is_documented() -> None:
    text = document("docs/operations.md").partition("## Findings")[2].partition("\n## ")[0]

    assert sorted(re.findall(r"(?m)^\| `(\w+)` \|", text)) == sorted(Reason)


def test_every_sysctl_is_documented() -> None:
    text = document("docs/operations.md").partition("## sysctls")[2].partition("\n## ")[0]
    names = {setting.name for release in ("5.4.0", "6.1.0") for setting in wanted(release, ipv6=True)}

    assert set(re.findall(r"(?m)^\| `(net[\w.]+)` \|", text)) == names


def test_documented_defaults_are_the_defaults() -> None:
    text = document("docs/configuration.md")
    for section, keys in SECTIONS.items():
        part = text.partition(f"## `[{section}]`")[2].partition("\n## ")[0]
        rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*?) \|", part))
        assert [*rows] == [*keys], section
        for key, default in rows.items():
            if (section, key) == ("node", "name"):
                continue
            read = parse(f"[{section}]\n{key} = {default.strip('`')}\n", key)
            assert getattr(getattr(read, section), key) == getattr(getattr(Settings(), section), key), key


def test_every_field_of_records_is_documented() -> None:
    text = document("docs/records.md")
    for kind in (WireService, WirePort, WireEndpoint):
        for field in kind.__struct_fields__:
            assert re.search(rf"`(?:ports\[\]\.)?{field}(?:\.[\w.]+)?`", text), f"{kind.__name__}.{field}"


# -- dependencies ----------------------------------------------------------------------------------


def dependencies() -> dict[str, str]:
    """Name -> bounds, as pyproject.toml has them."""
    listed = tomllib.loads(document("pyproject.toml"))["project"]["dependencies"]
    return dict(re.fullmatch(r"([\w-]+)(.*)", each).groups() for each in listed)  # type: ignore[union-attr, misc]


def test_dependencies_are_what_is_imported() -> None:
    imported = set()
    for path in (TREE / "edgeproxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"edgeproxy"}

    assert foreign == {IMPORT_NAMES.get(name, name) for name in dependencies()}


def test_every_dependency_is_bounded_and_documented() -> None:
    text = document("docs/dependencies.md")
    for name, bounds in dependencies().items():
        row = re.search(rf"(?m)^\| `{name}` \| (.*?) \|", text)
        assert row, name
        for bound in bounds.split(","):
            assert bound.removeprefix("!=") in row[1], f"{name}: {bound}"
        assert ">=" in bounds
        assert ",<" in bounds
