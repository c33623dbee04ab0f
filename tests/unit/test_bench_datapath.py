"""What ab and nginx say, read: a run that went wrong must not become a figure."""

from __future__ import annotations

import pytest

from tests.bench.book import find
from tests.bench.datapath import (
    CONNECTIONS,
    DIRECT,
    LATENCY,
    MOST,
    NODE_PORT,
    PLAIN,
    SECONDS,
    SINGLE,
    VIP,
    WAYS,
    Outcome,
    Round,
    Unanswered,
    Way,
    answered,
    check_shares,
    connections,
    figures,
    parse,
)

REPORT = """\
This is ApacheBench, Version 2.3 <$Revision$>

Server Software:        nginx/1.22.1
Document Length:        11 bytes

Concurrency Level:      16
Time taken for tests:   0.011 seconds
Complete requests:      100
Failed requests:        0
Total transferred:      15400 bytes
Requests per second:    9076.88 [#/sec] (mean)
Time per request:       1.763 [ms] (mean)

Connection Times (ms)
              min  mean[+/-sd] median   max
Connect:        0    1   0.4      1       1
"""
TABLE = "Percentage served,Time in ms\n0,0.783\n1,0.806\n99,2.082\n100,2.082\n"
BOTH = Way("both", "10.96.0.10", 80, "10.2.0.11", ("a", "b"))
ONE = Way("one", "10.2.0.101", 80, "10.2.0.2", ("a",))


def test_a_good_run() -> None:
    outcome = parse(REPORT, TABLE, 100)
    assert outcome.rate == 9076.88
    assert outcome.latencies == pytest.approx((783e-6, 806e-6, 2082e-6))


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("Complete requests:      100", "Complete requests:      99"),
        (
            "Failed requests:        0",
            "Failed requests:        3\n   (Connect: 0, Receive: 0, Length: 3, Exceptions: 0)",
        ),
        ("Failed requests:        0", "Failed requests:        0\nNon-2xx responses:      1"),
        ("Failed requests:        0", "Failed requests:        0\nWrite errors:           1"),
    ],
)
def test_a_run_with_failures_has_no_figures(line: str, instead: str) -> None:
    assert line in REPORT
    with pytest.raises(Unanswered, match="some failed"):
        parse(REPORT.replace(line, instead), TABLE, 100)


@pytest.mark.parametrize(
    ("way", "shares"), [(BOTH, {"a": 50, "b": 50}), (BOTH, {"a": 44, "b": 56}), (ONE, {"a": 100, "b": 0})]
)
def test_shares_that_are_even(way: Way, shares: dict[str, int]) -> None:
    check_shares(way, shares, 100)


@pytest.mark.parametrize(
    ("way", "shares"),
    [
        (BOTH, {"a": 24, "b": 76}),
        (BOTH, {"a": 50, "b": 49}),
        (BOTH, {"a": 50, "b": 51}),
        (ONE, {"a": 99, "b": 1}),
        (ONE, {"a": 100, "b": 1}),
    ],
)
def test_connections_that_went_elsewhere_or_nowhere(way: Way, shares: dict[str, int]) -> None:
    with pytest.raises(Unanswered, match=way.name):
        check_shares(way, shares, 100)


def test_what_nginx_counts() -> None:
    status = "Active connections: 1 \nserver accepts handled requests\n 108 107 102 \nReading: 0 Writing: 1 Waiting: 0 \n"
    assert answered(status) == 102


def test_a_run_has_bounds() -> None:
    assert connections(1.0) == SINGLE
    assert connections(1e6) == MOST
    assert connections(SINGLE / SECONDS + 1) == int(SINGLE + SECONDS)


def test_ratios_are_taken_within_a_round_and_above_1_is_better() -> None:
    cost = {DIRECT: 1.0, PLAIN: 2.0, VIP: 4.0, NODE_PORT: 1.0}
    rounds = [
        {
            way: Round(Outcome(slow * cost[way], ()), Outcome(0.0, (slow * cost[way],) * SINGLE))
            for way in WAYS
        }
        for slow in (1.0, 50.0, 7.0)
    ]
    found = list(figures(rounds))
    for case, pair, value in (
        (CONNECTIONS, f"{VIP} / {PLAIN}", 2.0),
        (CONNECTIONS, f"{NODE_PORT} / {DIRECT}", 1.0),
        (f"{LATENCY}, p50", f"{PLAIN} / {VIP}", 0.5),
    ):
        ratio = find(found, case, pair, "")
        assert ratio is not None
        assert ratio.samples == (value,) * 3
    slowest = find(found, f"{LATENCY}, p99", f"{PLAIN} / {NODE_PORT}", "")
    assert slowest is not None
    assert slowest.samples == (2.0,)
    latencies = find(found, LATENCY, VIP, "")
    assert latencies is not None
    assert len(latencies.samples) == 3 * SINGLE
