"""The pure parts of the figures: what a table or a plot says must be what was measured."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench.book import Book, quantity, shown
from tests.bench.figures import Figure, Run, percentile, read, write
from tests.bench.load import Load, frontend, packed, spare, vip
from tests.bench.plot import Bars, Plot, bars, svg
from tests.bench.probe import Capped
from tests.bench.ratios import ratios
from tests.bench.targets import verdicts

SIZE = "4000 x 10"


def test_nearest_rank_percentiles() -> None:
    samples = list(range(200, 0, -1))
    assert [percentile(samples, p) for p in (0, 50, 90, 99, 100)] == [1, 100, 180, 198, 200]
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="without samples"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (73.0, "s", "73 s"),
        (0.0033, "s", "3.3 ms"),
        (117e-6, "s", "117 µs"),
        (2e-8, "s", "0.02 µs"),
        (13003.0, "count", "13003"),
    ],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_a_capped_peer_counts_as_a_lower_bound() -> None:
    book = Book(silent=True)
    with book.timed("start, kernel empty", "ipvsadm", SIZE):
        raise Capped
    book.add("engine, kernel empty", "kernel apply", SIZE, "s", [1e-9])
    (ratio,) = ratios(book.figures)
    assert ratio.at_least
    assert "at least" in str(ratio)
    assert shown(book.figures[0]).startswith("more than ")


def test_a_ratio_says_whether_its_aim_is_met() -> None:
    def reload(seconds: float) -> list[Figure]:
        return [
            Figure("one endpoint added", "keepalived", SIZE, "s", (seconds,)),
            Figure("one endpoint added", "edgeproxy", SIZE, "s", (0.9, 0.1, 0.1)),
        ]

    (met,) = ratios(reload(10.0))
    (missed,) = ratios(reload(9.9))
    assert met.met
    assert not missed.met


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Run("make bench", "now", 1.5, ("a machine",), "nothing", (Figure("c", "p", SIZE, "s", (1.0, 2.0)),))
    write(run, tmp_path / "new" / "run.json")
    assert read(tmp_path / "new" / "run.json") == run
    assert read(tmp_path / "none.json") is None


def test_a_plot_is_xml_with_a_line_for_each_name_and_higher_values_higher() -> None:
    picture = ElementTree.fromstring(
        svg(Plot("a < b", "x", "y", {"up": [(10, 1), (1000, 100)], "&": [(10, 5)]}))
    )
    lines = [line.get("points", "") for line in picture.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 2
    (left, low), (right, high) = (map(float, point.split(",")) for point in lines[0].split())
    assert left < right
    assert low > high, "SVG counts down"
    with pytest.raises(ValueError, match="above 0"):
        svg(Plot("t", "x", "y", {"zero": [(1, 0)]}))


def test_bars_are_as_long_as_their_values() -> None:
    picture = ElementTree.fromstring(bars(Bars("t", "ms", {"a & b": (2.0, 1.0, 3.0), "c": (4.0, 4.0, 4.0)})))
    boxes = [box for box in picture.iter("{http://www.w3.org/2000/svg}rect") if box.get("height") == "26"]
    first, second = (float(box.get("width", "0")) for box in boxes)
    assert second == pytest.approx(2 * first, rel=0.01)
    with pytest.raises(ValueError, match="nothing to draw"):
        bars(Bars("t", "ms", {}))


def test_a_limit_is_kept_or_not() -> None:
    def verdict(value: float) -> bool:
        figure = Figure("memory, steady", "edgeproxy", "10000 x 10", "MiB", (value,))
        (found,) = verdicts([figure])
        return found.met

    assert verdict(200.0)
    assert not verdict(200.1)


def test_no_address_of_a_load_is_used_twice() -> None:
    load = Load(300, 10)
    backends = [backend for service in range(load.services) for backend in load.backends(service)]
    spares = [spare(number) for number in range(5000)]
    vips = [vip(service) for service in range(load.services)]
    assert len({*backends, *spares, *vips}) == load.reals + 5000 + load.services
    assert frontend(299).address == packed(vips[-1])
    assert sum(1 for _ in load.records()) == load.services + load.reals
