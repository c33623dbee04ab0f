"""What a daemon leaves for the next one: believed whole or not at all, and no other state than a list gives."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeproxy.catalog import CatalogImage
from edgeproxy.etcd.ledger import entry_of
from edgeproxy.keeper import Keeper
from edgeproxy.kept import FORMAT, Kept, decode, encode
from edgeproxy.model import Element, Protocol, SetName
from edgeproxy.settings import Node, Settings
from tests.unit.site import BUILD, PREFIX, SETTINGS, Record, Site, finish, picture
from tests.unit.test_reconcile import CHANGES, settled_site

SOME = settings(max_examples=25, suppress_health_check=list(HealthCheck))
RECORDS: dict[str, Record | None] = {
    "web": {
        "clusterIPs": ["10.96.0.10", "fd00:96::10"],
        "ports": [
            {"name": "web", "port": 80, "targetPort": 8080, "nodePort": 30080},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ],
        "loadBalancerIPs": ["198.51.100.1"],
        "loadBalancerSourceRanges": ["203.0.113.0/24"],
        "scheduler": "mh",
        "drainSeconds": 7,
    },
    "web/endpoints/a": {"address": "10.1.1.2", "nodeName": "host0", "hints": {"forZones": ["here"]}},
    "web/endpoints/b": {"address": "fd00:1::2", "ports": {"web": 81, "dns": 5353}, "weight": 3},
    "bad": '{"clusterIP": ',
    "warned": {"clusterIP": "10.96.0.11", "ports": [{"port": 1}], "nodeport": 3},
    "detoured": {
        "externalIPs": ["192.0.2.1"],
        "externalTrafficPolicy": "Local",
        "ports": [{"port": 80}],
        "type": "LoadBalancer",
        "healthCheckNodePort": 31000,
    },
    "outside": {"clusterIP": "172.30.0.1", "ports": [{"port": 80}], "sessionAffinity": "ClientIP"},
    "outside/endpoints/x": "10.96.0.9",
    "loses": {"clusterIP": "10.96.0.10", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]},
    "no/such/key": "x",
}


def kept_of(site: Site) -> Kept:
    kept = site.keep()
    assert kept is not None
    return kept


def plain(kept: Kept | None) -> Kept | None:
    """With endpoints as values, whoever has looked at them."""
    if kept is None:
        return None
    return msgspec.structs.replace(kept, catalog=plain_image(kept.catalog))


def plain_image(image: CatalogImage) -> CatalogImage:
    services = tuple(msgspec.structs.replace(each, endpoints=each.entries) for each in image.services)
    return msgspec.structs.replace(image, services=services)


def read_back(kept: Kept, build: str = BUILD, prefix: str = PREFIX) -> Kept | None:
    return decode(b"".join(encode(kept)), build, prefix)


def busy_site() -> Site:
    site = settled_site(RECORDS)
    site.put({"web": RECORDS["web"], "late/endpoints/e": "10.1.1.9"})
    return site


def test_what_is_written_is_read() -> None:
    kept = kept_of(busy_site())
    back = read_back(kept)
    assert plain(back) == kept
    assert back is not None
    assert {e.set for part in back.parts.values() for e in part.elements} >= {
        SetName.FRONTENDS4,
        SetName.SOURCES4,
        SetName.NODE_PORTS6,
    }
    for part in back.parts.values():
        for element in part.elements:
            assert _protocols(element) in (0, 1)
            assert _protocols(element) == any(isinstance(f, int) for f in element.key)


def _protocols(element: Element) -> int:
    return sum(isinstance(field, Protocol) for field in element.key)


def test_endpoints_nobody_asks_for_stay_as_they_are_on_disk() -> None:
    site = busy_site()
    back = read_back(kept_of(site))
    assert back is not None
    site.recall(back)
    site.sync()
    counts = site.reconciler.catalog.counts()
    assert (counts.endpoints, counts.stray) == (4, 1)
    site.put({"web/endpoints/b": "10.1.1.3"})
    again = kept_of(site)
    as_they_were = {each.name for each in again.catalog.services if isinstance(each.endpoints, msgspec.Raw)}
    assert {"outside", "late"} <= as_they_were
    assert "web" not in as_they_were
    assert plain(read_back(again)) == plain(again)


def test_of_parts_that_hang_on_the_moment_none_is_kept() -> None:
    assert kept_of(busy_site()).parts.keys() == {"web", "warned", "outside", "loses"}


def test_nothing_is_kept_before_the_first_sync_or_in_doubt() -> None:
    site = Site()
    assert site.keep() is None
    site.restart()
    assert site.keep() is None
    site.sync()
    assert site.keep() is not None
    site.reconciler.doubt()
    assert site.keep() is None


def test_what_is_not_in_the_kernel_yet_is_compiled_again() -> None:
    site = busy_site()
    site.reconciler.apply(site.write({"web/endpoints/a": None}), site.revision)
    assert "web" not in kept_of(site).parts


@pytest.mark.parametrize(("build", "prefix"), [("another", PREFIX), (BUILD, "/others/")])
def test_another_program_or_prefix_has_nothing_of_it(build: str, prefix: str) -> None:
    assert read_back(kept_of(busy_site()), build, prefix) is None


def test_a_file_that_is_cut_short_anywhere_is_not_believed() -> None:
    content = b"".join(encode(kept_of(busy_site())))
    for length in range(len(content)):
        assert decode(content[:length], BUILD, PREFIX) is None


@SOME
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_damaged_file_is_not_believed(at: int, bit: int) -> None:
    content = bytearray(b"".join(encode(kept_of(busy_site()))))
    content[at % len(content)] ^= 1 << bit
    assert decode(bytes(content), BUILD, PREFIX) is None


@pytest.mark.parametrize("content", [b"", FORMAT, b"another format\n", FORMAT + bytes(8)])
def test_no_file_of_ours(content: bytes) -> None:
    assert decode(content, BUILD, PREFIX) is None


def test_a_recalled_host_writes_nothing_and_finds_the_same() -> None:
    site = busy_site()
    writes, findings = site.kernel.writes, site.reconciler.findings()
    back = read_back(kept_of(site))
    assert back is not None
    site.recall(back)
    site.sync()
    assert site.kernel.writes == writes
    assert site.reconciler.findings() == findings
    finish(site.reconciler.audit())
    assert site.kernel.writes == writes


def test_on_another_host_everything_is_compiled_anew() -> None:
    site = busy_site()
    kept = kept_of(site)
    site.settings = msgspec.structs.replace(SETTINGS, node=Node(name="host1"))
    site.recall(kept)
    site.sync()
    assert picture(site.kernel) == picture(_fresh(site, site.settings).kernel)


def _fresh(site: Site, of: Settings) -> Site:
    """A host with an empty kernel and the same records."""
    other = Site(of)
    other.records, other.revision = site.records, site.revision
    for server in [s for f, s in site.kernel.servers.items() if f not in site.ours()]:
        assert server.virtual_server is not None
        other.kernel.make_foreign(
            server.virtual_server, *(r.real_server for r in site.kernel.reals[server.frontend].values())
        )  # type: ignore[index]
    other.restart()
    other.sync()
    return other


@SOME
@given(before=CHANGES, unsynced=CHANGES, after=CHANGES)
def test_to_recall_is_to_list(
    before: dict[str, Record | None], unsynced: dict[str, Record | None], after: dict[str, Record | None]
) -> None:
    site = settled_site(before)
    site.reconciler.apply(site.write(unsynced), site.revision)
    kept = kept_of(site)
    assert plain(read_back(kept)) == plain(kept)
    site.write(after)
    other = site.copy()
    site.recall(kept)
    for each in (site, other):
        each.sync()
        each.quiet()
    assert picture(site.kernel) == picture(other.kernel)
    assert site.reconciler.findings() == other.reconciler.findings()
    assert plain_image(site.reconciler.catalog.image()) == _sorted_like(other, site)


def _sorted_like(other: Site, site: Site) -> object:
    """The image of another host with its services and endpoints in the order of this one."""
    image, order = (plain_image(each.reconciler.catalog.image()) for each in (other, site))
    services = {service.name: service for service in image.services}
    assert services.keys() == {service.name for service in order.services}
    ordered = []
    for like in order.services:
        service = services[like.name]
        entries = {entry.key: entry for entry in service.entries}
        assert entries.keys() == {entry.key for entry in like.entries}
        ordered.append(
            msgspec.structs.replace(service, endpoints=tuple(entries[e.key] for e in like.entries))
        )
    return msgspec.structs.replace(image, services=tuple(ordered))


def test_a_store_whose_revisions_are_too_large_is_not_kept_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = kept_of(busy_site())
    large = msgspec.structs.replace(kept.ledger, entries={b"/services/web": entry_of(1 << 32, b"")})
    Keeper(tmp_path, PREFIX).write(msgspec.structs.replace(kept, ledger=large))
    assert not (tmp_path / "kept").exists()
    assert "kept cannot be written" in caplog.text
