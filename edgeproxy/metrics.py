"""What Prometheus reads: one registry of our own, every name starts with `edgeproxy_`.

Two kinds: what happens (counters, histograms) is noted as it happens; what is (gauges) is taken from
the daemon's status at the moment of the scrape, so an event costs nothing for them.
Buckets and meanings follow kube-proxy's `pkg/proxy/metrics/metrics.go`.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeproxy.etcd.health import StoreHealth
from edgeproxy.health import OK, PLAIN, Answer
from edgeproxy.model import Reason
from edgeproxy.status import Status

# 0.25 ms to 8 s: an event should be in the kernel within a few milliseconds.
EVENT_BUCKETS = tuple(0.00025 * 2**power for power in range(16))
# kube-proxy's sync_proxy_rules_duration_seconds: 1 ms * 2^n, 15 of them.
SYNC_BUCKETS = tuple(0.001 * 2**power for power in range(15))
# kube-proxy's network_programming_duration_seconds.
PROGRAMMING_BUCKETS = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))

# `_created` series double the size of a scrape and Prometheus ignores them. A setting of the library as a whole.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The figures of one daemon."""

    def __init__(
        self,
        status: Callable[[], Status],
        store: Callable[[], StoreHealth],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`status` and `store` are asked at each scrape; `monotonic` is the clock of the store's times."""
        self.registry = CollectorRegistry()
        self.registry.register(_Present(status, store, monotonic))
        ProcessCollector(namespace="edgeproxy", registry=self.registry)
        self._events = Histogram(
            "edgeproxy_event_to_kernel_seconds",
            "Time from receipt of a change to its being in force in the kernel.",
            buckets=EVENT_BUCKETS,
            registry=self.registry,
        )
        self._programming = Histogram(
            "edgeproxy_network_programming_seconds",
            "Time from a record's changedAt to its being in force in the kernel.",
            buckets=PROGRAMMING_BUCKETS,
            registry=self.registry,
        )
        self._syncs = Histogram(
            "edgeproxy_sync_seconds",
            "Duration of one sync; full ones compare the whole kernel state.",
            ("scope",),
            buckets=SYNC_BUCKETS,
            registry=self.registry,
        )
        self._full, self._partial = self._syncs.labels("full"), self._syncs.labels("partial")
        self._failures = self._counter("edgeproxy_sync_failures", "Syncs that did not succeed.")
        self._queued = self._gauge(
            "edgeproxy_last_queued_timestamp_seconds", "When a sync was last asked for."
        )
        self._synced = self._gauge("edgeproxy_last_sync_timestamp_seconds", "When a sync last succeeded.")
        self._flows = self._counter("edgeproxy_conntrack_deleted", "Flows removed from connection tracking.")
        self._operations = self._counter("edgeproxy_operations", "Kernel operations.", "kind", "result")
        self._healthz = self._counter("edgeproxy_healthz", "Answers of /healthz.", "code")
        self._livez = self._counter("edgeproxy_livez", "Answers of /livez.", "code")
        self._by_operation: dict[tuple[str, bool], Counter] = {}

    def queued(self) -> None:
        """A sync has been asked for."""
        self._queued.set_to_current_time()

    def synced(self, seconds: float, *, full: bool, succeeded: bool) -> None:
        """A sync has ended after `seconds`."""
        (self._full if full else self._partial).observe(seconds)
        if succeeded:
            self._synced.set_to_current_time()
        else:
            self._failures.inc()

    def event_applied(self, seconds: float) -> None:
        """A change is in the kernel, `seconds` after it was received."""
        self._events.observe(seconds)

    def record_applied(self, seconds: float) -> None:
        """A record is in the kernel, `seconds` (wall clock) after its `changedAt`."""
        self._programming.observe(max(seconds, 0.0))

    def operated(self, kind: str, count: int = 1, *, succeeded: bool = True) -> None:
        """`count` kernel operations of a kind have succeeded or failed."""
        child = self._by_operation.get((kind, succeeded))
        if child is None:
            child = self._operations.labels(kind, "ok" if succeeded else "error")
            self._by_operation[kind, succeeded] = child
        child.inc(count)

    def flows_deleted(self, count: int) -> None:
        """Connection tracking entries have been removed."""
        self._flows.inc(count)

    def healthz(self, answer: Answer) -> Answer:
        """Count an answer of /healthz and pass it on."""
        self._healthz.labels(str(answer.status)).inc()
        return answer

    def livez(self, answer: Answer) -> Answer:
        """Count an answer of /livez and pass it on."""
        self._livez.labels(str(answer.status)).inc()
        return answer

    def page(self) -> Answer:
        """The answer of /metrics."""
        return Answer(OK, generate_latest(self.registry), CONTENT_TYPE_LATEST)

    def alive(self) -> Answer:
        """The answer of the metrics server's own /healthz."""
        return Answer(OK, b"ok\n", PLAIN)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)


class _Present(Collector):
    """The gauges: asks for the present state at each scrape."""

    def __init__(
        self, status: Callable[[], Status], store: Callable[[], StoreHealth], monotonic: Callable[[], float]
    ) -> None:
        self._status = status
        self._store = store
        self._monotonic = monotonic

    def describe(self) -> Iterable[Metric]:
        """No names before the first scrape: registering must not ask a daemon that is still starting."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from _status_metrics(self._status())
        yield from _store_metrics(self._store(), self._monotonic())


def _status_metrics(status: Status) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "edgeproxy_build_info", "The running version; always 1.", labels=("version", "node")
    )
    info.add_metric((status.version, status.node), 1)
    yield info
    kernel = status.kernel
    for name, text, value in (
        ("ready", "1 once a complete state has been applied.", status.ready),
        ("healthy", "0 while a change waits too long for the kernel.", status.healthy),
        ("cordoned", "1 while this host is marked as draining.", status.cordoned),
        ("revision_seen", "Newest store revision received.", status.revision_seen),
        ("revision_applied", "Store revision that is in the kernel.", status.revision),
        ("services", "Services known.", status.services),
        ("endpoints", "Endpoint records known.", status.endpoints),
        ("virtual_servers", "IPVS virtual servers of ours.", kernel.virtual_servers),
        ("real_servers", "IPVS real servers of ours.", kernel.real_servers),
        ("node_ports", "Node ports served.", kernel.node_ports),
        ("drains", "Real servers that finish their connections before they go.", kernel.drains),
    ):
        yield GaugeMetricFamily(f"edgeproxy_{name}", text, value=float(value))
    findings = GaugeMetricFamily("edgeproxy_findings", "Findings that stand, by reason.", labels=("reason",))
    tally = Tally(finding.reason for finding in status.findings)
    for reason in Reason:
        findings.add_metric((reason,), tally[reason])
    yield findings


def _store_metrics(store: StoreHealth, now: float) -> Iterator[Metric]:
    connected = GaugeMetricFamily(
        "edgeproxy_store_connected", "The endpoint followed; 1.", labels=("endpoint",)
    )
    if store.endpoint:
        connected.add_metric((store.endpoint,), 1)
    yield connected
    for name, text, value in (
        ("revision", "Everything up to this store revision has been delivered.", store.revision),
        ("keys", "Keys known below the prefix.", store.keys),
        (
            "operator_needed",
            "1 while the store refuses us for good (login, permission, TLS).",
            store.operator_needed,
        ),
    ):
        yield GaugeMetricFamily(f"edgeproxy_store_{name}", text, value=float(value))
    for name, text, moment in (
        ("message_age", "Seconds since the last message on the watch.", store.stream_at),
        ("confirmed_age", "Seconds since the store last confirmed what we know.", store.confirmed_at),
    ):
        age = GaugeMetricFamily(f"edgeproxy_store_{name}_seconds", text)
        if moment is not None:
            age.add_metric((), now - moment)
        yield age
    for name, text, count in (
        ("connects", "Attempts to connect.", store.connects),
        ("resumes", "Watches taken up again without a list.", store.resumes),
        ("audits", "Complete audit lists.", store.audits),
        ("audit_differences", "Keys that an audit found wrong.", store.audit_differences),
        ("dropped_events", "Events dropped because they were delivered before.", store.dropped_events),
        ("coalesced", "Times a backlog was merged because we were slow.", store.coalesced),
        ("login_failures", "Logins refused.", store.login_failures),
    ):
        yield CounterMetricFamily(f"edgeproxy_store_{name}", text, value=count)
    relists = CounterMetricFamily("edgeproxy_store_relists", "Complete lists, by cause.", labels=("cause",))
    for cause, count in store.relists.items():
        relists.add_metric((str(cause),), count)
    yield relists
