"""The metrics page: names, values taken at the scrape, counters and buckets."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from edgeproxy.etcd.changes import Cause
from edgeproxy.etcd.health import StoreHealth
from edgeproxy.health import Answer
from edgeproxy.metrics import PROGRAMMING_BUCKETS, Metrics
from edgeproxy.model import Finding, Reason
from edgeproxy.status import KernelCounts, Status

STATUS = Status(
    version="1.2.3",
    node="edge-1",
    pid=1,
    uptime=1.0,
    revision=40,
    revision_seen=42,
    ready=True,
    healthy=True,
    cordoned=False,
    services=3,
    endpoints=9,
    kernel=KernelCounts(virtual_servers=4, real_servers=12, node_ports=1, drains=2),
    findings=(
        Finding("/services/a", 4, "", Reason.BAD_RECORD, "m"),
        Finding("", 0, "", Reason.BAD_RECORD, "n"),
    ),
)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.page().body.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def metrics(store: StoreHealth | None = None) -> Metrics:
    return Metrics(lambda: STATUS, lambda: store or StoreHealth(), lambda: 100.0)


def test_every_name_is_ours() -> None:
    found = samples(metrics())

    assert len(found) > 100
    assert all(name.startswith("edgeproxy_") for name, _ in found)
    assert not [name for name, _ in found if name.endswith("_created")]


def test_the_state_is_what_it_is_at_the_scrape() -> None:
    found = samples(metrics())

    assert found["edgeproxy_revision_seen", ()] == 42
    assert found["edgeproxy_revision_applied", ()] == 40
    assert found["edgeproxy_virtual_servers", ()] == 4
    assert found["edgeproxy_real_servers", ()] == 12
    assert found["edgeproxy_drains", ()] == 2
    assert found["edgeproxy_findings", (("reason", "BadRecord"),)] == 2
    assert found["edgeproxy_findings", (("reason", "Conflict"),)] == 0
    assert found["edgeproxy_build_info", (("node", "edge-1"), ("version", "1.2.3"))] == 1


def test_the_store() -> None:
    store = StoreHealth(endpoint="http://a:2379", revision=42, stream_at=99.0, confirmed_at=90.0, resumes=5)
    cause = next(iter(Cause))
    store.relists[cause] += 2
    found = samples(metrics(store))

    assert found["edgeproxy_store_connected", (("endpoint", "http://a:2379"),)] == 1
    assert found["edgeproxy_store_message_age_seconds", ()] == 1
    assert found["edgeproxy_store_confirmed_age_seconds", ()] == 10
    assert found["edgeproxy_store_resumes_total", ()] == 5
    assert found["edgeproxy_store_relists_total", (("cause", str(cause)),)] == 2


def test_ages_of_what_never_happened_are_absent() -> None:
    names = {name for name, _ in samples(metrics())}

    assert "edgeproxy_store_confirmed_age_seconds" not in names
    assert "edgeproxy_store_connected" not in names


def test_what_happens_is_counted() -> None:
    counted = metrics()
    counted.operated("add_real_server", 3)
    counted.operated("add_real_server", 2)
    counted.operated("add_real_server", succeeded=False)
    counted.event_applied(0.003)
    counted.record_applied(-1.0)
    counted.synced(0.002, full=False, succeeded=True)
    counted.synced(2.0, full=True, succeeded=False)
    counted.flows_deleted(4)
    assert counted.healthz(Answer(503, b"")).status == 503
    counted.livez(Answer(200, b""))
    found = samples(counted)

    assert found["edgeproxy_operations_total", (("kind", "add_real_server"), ("result", "ok"))] == 5
    assert found["edgeproxy_operations_total", (("kind", "add_real_server"), ("result", "error"))] == 1
    assert found["edgeproxy_event_to_kernel_seconds_bucket", (("le", "0.002"),)] == 0
    assert found["edgeproxy_event_to_kernel_seconds_bucket", (("le", "0.004"),)] == 1
    assert found["edgeproxy_network_programming_seconds_bucket", (("le", "0.25"),)] == 1
    assert found["edgeproxy_sync_seconds_count", (("scope", "partial"),)] == 1
    assert found["edgeproxy_sync_failures_total", ()] == 1
    assert found["edgeproxy_last_sync_timestamp_seconds", ()] > 1e9
    assert found["edgeproxy_conntrack_deleted_total", ()] == 4
    assert found["edgeproxy_healthz_total", (("code", "503"),)] == 1
    assert found["edgeproxy_livez_total", (("code", "200"),)] == 1


def test_buckets_of_the_programming_latency_are_kube_proxys() -> None:
    assert len(PROGRAMMING_BUCKETS) == 2 + 59 + 12 + 7
    assert PROGRAMMING_BUCKETS[:3] == (0.25, 0.5, 1)
    assert PROGRAMMING_BUCKETS[-2:] == (270, 300)
