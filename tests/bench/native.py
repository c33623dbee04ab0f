"""The cases that need no IPVS, on this machine itself. The pipeline's times are CPU times: others run here, too."""

from __future__ import annotations

import cProfile
import io
import json
import pstats
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from edgeproxy.etcd.changes import Event
from tests.bench import daemon, fleet
from tests.bench.book import Book
from tests.bench.load import Load, endpoint_key, endpoint_record, spare
from tests.bench.pipeline import Pipeline, snapshot

ROOT = Path(__file__).resolve().parents[2]
PROFILE_LINES = 25
EVENTS, EVENTS_OF_LARGE = 1000, 50
ROUNDS = 3


class Extent(msgspec.Struct, frozen=True):
    """How much to measure; `fleet`: followers, and seconds of changes for them."""

    sizes: tuple[int, ...]
    endpoints: int
    changes: int
    burst: int
    idle: float
    fleet: tuple[int, float]


def run(extent: Extent, book: Book) -> None:
    """Pipeline, memory, the daemon on an imaginary IPVS, the fleet."""
    loads = [Load(services, extent.endpoints) for services in extent.sizes]
    for load in [*loads, Load(1, 5000)]:
        _pipeline(load, book)
    for load in loads:
        _memory(load, book)
    daemon.run(loads[0], loads[-1], extent.changes, extent.burst, extent.idle, book)
    fleet.run(*extent.fleet, book)


def _pipeline(load: Load, book: Book) -> None:
    steps: dict[str, list[float]] = {name: [] for name in ("decode", "compile", "plan", "encode", "whole")}
    for _ in range(ROUNDS):
        records, pipeline = snapshot(load), Pipeline()
        clock = [time.process_time()]
        services = pipeline.decode(records)
        clock.append(time.process_time())
        touched = pipeline.compile(services)
        clock.append(time.process_time())
        plan = pipeline.plan(touched)
        clock.append(time.process_time())
        pipeline.encode(plan)
        clock.append(time.process_time())
        for name, began, ended in zip(steps, clock, clock[1:], strict=False):
            steps[name].append(ended - began)
        steps["whole"].append(clock[-1] - clock[0])
    for name, samples in steps.items():
        book.add("records to bytes", name, load, "s", samples)
    pipeline.accept(plan)
    events = EVENTS if load.endpoints < EVENTS else EVENTS_OF_LARGE
    book.add("one event to bytes", "edgeproxy", load, "s", [_event(pipeline, load, k) for k in range(events)])


def _event(pipeline: Pipeline, load: Load, number: int) -> float:
    """One endpoint added; the kernel is not told, so that every sample finds the same state."""
    service = load.services * number // EVENTS
    key, record = endpoint_key(service, f"spare-{number}"), endpoint_record(spare(number))
    revision = 10_000_000 + number
    event = Event(key.encode(), json.dumps(record).encode(), revision, revision)
    began = time.process_time()
    pipeline.apply(event)
    return time.process_time() - began


def _memory(load: Load, book: Book) -> None:
    argv = [sys.executable, "-m", "tests.bench.memory", str(load.services), str(load.endpoints)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    imports, steady, most = map(float, done.stdout.split())
    book.add("memory: program alone", "edgeproxy", load, "MiB", [imports])
    book.add("memory: books full", "edgeproxy", load, "MiB", [steady])
    book.add("memory: most ever", "edgeproxy", load, "MiB", [most])


def profile(load: Load) -> str:
    """The functions that take most of the time of `records to bytes`, as a table."""
    records, pipeline = snapshot(load), Pipeline()
    recorder = cProfile.Profile()
    recorder.enable()
    pipeline.encode(pipeline.plan(pipeline.compile(pipeline.decode(records))))
    recorder.disable()
    text = io.StringIO()
    pstats.Stats(recorder, stream=text).strip_dirs().sort_stats("tottime").print_stats(PROFILE_LINES)
    return text.getvalue()
