"""The imaginary IPVS of tests/fake_kernel.py refuses, keeps and forgets what the real one does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeproxy.address import parse
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.kernel.ipvs_operations import (
    AddReal,
    AddVirtual,
    EditReal,
    EditVirtual,
    Operation,
    RemoveReal,
    RemoveVirtual,
)
from edgeproxy.model import Frontend, Protocol, RealServer, VirtualServer
from tests.fake_kernel import FakeIpvs, FakeKernel
from tests.kernel.engine import Site

FRONTENDS = [
    Frontend(parse("10.96.0.10"), Protocol.TCP, 80),
    Frontend(parse("10.96.0.10"), Protocol.UDP, 80),
    Frontend(parse("fd00:96::10"), Protocol.TCP, 80),
]


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    """Anything, wanted or not; some schedulers are not there."""
    frontend = draw(st.sampled_from(FRONTENDS))
    backend = parse(f"10.1.{draw(st.integers(1, 2))}.2" if len(frontend.address) == 4 else "fd00:1::2")
    real = RealServer(backend, 8080, draw(st.integers(0, 2)))
    scheduler = draw(st.sampled_from(["rr", "wrr", "mh", "nosuch"]))
    timeout, flags = draw(st.sampled_from([0, 60])), 0x10 if scheduler == "mh" else 0
    server = VirtualServer(frontend, scheduler, timeout, flags)
    kind = draw(
        st.sampled_from([AddVirtual, AddReal, AddReal, EditVirtual, EditReal, RemoveReal, RemoveVirtual])
    )
    if kind is AddVirtual:
        return AddVirtual(server, adopt=draw(st.booleans()))
    if kind is EditVirtual:
        return EditVirtual(server)
    if kind is RemoveVirtual:
        return RemoveVirtual(frontend)
    if kind is RemoveReal:
        return RemoveReal(frontend, real.address, real.port)
    return AddReal(frontend, real) if kind is AddReal else EditReal(frontend, real)


BATCHES = st.lists(st.lists(operations(), max_size=8), min_size=1, max_size=4)


def dump(ipvs: Ipvs) -> dict[object, object]:
    """Everything the kernel holds; what IPVS keeps of a timeout without affinity is its own affair."""
    return {
        state.server.frontend: (state.server.virtual_server, state.server.plain, set(state.destinations))
        for state in ipvs.dump()
    }


def failures(ipvs: Ipvs, batch: list[Operation]) -> set[tuple[int, int]]:
    """Position and error number of what was refused."""
    positions = {id(operation): at for at, operation in enumerate(batch)}
    return {(positions[id(failed.operation)], failed.errno) for failed in ipvs.apply(batch)}


@pytest.fixture(scope="module")
def real() -> Iterator[Ipvs]:
    with Site() as site, site.in_namespace(Ipvs) as ipvs:
        yield ipvs


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(batches=BATCHES)
def test_same_operations_same_state(real: Ipvs, batches: list[list[Operation]]) -> None:
    real.apply([RemoveVirtual(frontend) for frontend in FRONTENDS])
    fake = FakeIpvs(FakeKernel())
    for batch in batches:
        assert failures(fake, batch) == failures(real, batch), batch
        assert dump(fake) == dump(real)
        assert fake.dump_frontends(FRONTENDS).keys() == real.dump_frontends(FRONTENDS).keys()
