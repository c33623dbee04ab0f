"""Operations on IPVS: what errors mean, what they are called."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.address import parse
from edgeproxy.kernel.ipvs_operations import (
    AddReal,
    AddVirtual,
    EditReal,
    EditVirtual,
    Failure,
    Operation,
    RemoveReal,
    RemoveVirtual,
    encode,
    encode_all,
    failure,
    follow_up,
    target,
)
from edgeproxy.model import Frontend, Protocol, RealServer, VirtualServer

WEB = Frontend(parse("10.96.0.10"), Protocol.TCP, 80)
SERVER = VirtualServer(WEB, "mh", 300, 0x10)
REAL = RealServer(parse("10.1.1.2"), 8080, 3)
ALL: list[Operation] = [
    AddVirtual(SERVER),
    EditVirtual(SERVER),
    RemoveVirtual(WEB),
    AddReal(WEB, REAL),
    EditReal(WEB, REAL),
    RemoveReal(WEB, REAL.address, REAL.port),
]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(ALL),
            st.builds(
                AddReal,
                st.sampled_from([WEB, Frontend(parse("fd00::a"), Protocol.UDP, 53)]),
                st.builds(
                    RealServer,
                    st.sampled_from([parse("10.1.1.2"), parse("10.1.1.3"), parse("fd00::1")]),
                    st.sampled_from([80, 8080]),
                    st.sampled_from([0, 1]),
                ),
            ),
        )
    )
)
def test_a_run_is_encoded_as_each_by_itself(operations: list[Operation]) -> None:
    assert encode_all(operations) == [encode(operation) for operation in operations]


@pytest.mark.parametrize(
    ("operation", "number", "then"),
    [
        (AddVirtual(SERVER, "why", adopt=True), errno.EEXIST, EditVirtual(SERVER, "why")),
        (AddReal(WEB, REAL, "why"), errno.EEXIST, EditReal(WEB, REAL, "why")),
        (EditReal(WEB, REAL, "why"), errno.ENOENT, AddReal(WEB, REAL, "why")),
        (RemoveVirtual(WEB), errno.ESRCH, None),
        (RemoveReal(WEB, REAL.address, REAL.port), errno.ENOENT, None),
        (RemoveReal(WEB, REAL.address, REAL.port), errno.ESRCH, None),
    ],
)
def test_it_is_so_already(operation: Operation, number: int, then: Operation | None) -> None:
    assert follow_up(operation, number) == then


@pytest.mark.parametrize("operation", ALL, ids=str)
def test_any_other_error_is_a_failure(operation: Operation) -> None:
    found = follow_up(operation, errno.ENOMEM, "out of luck")
    assert isinstance(found, Failure)
    assert found.operation is operation
    assert found.message == f"{operation}: Cannot allocate memory (errno 12): out of luck"
    assert not (found.unknown_scheduler or found.foreign or found.vanished)


def test_an_unknown_scheduler_is_told_apart() -> None:
    for operation in (AddVirtual(SERVER), EditVirtual(SERVER)):
        found = follow_up(operation, errno.ENOENT)
        assert isinstance(found, Failure)
        assert found.unknown_scheduler
        assert "load the module ip_vs_mh" in found.message
    assert not failure(AddReal(WEB, REAL), errno.ENOENT).unknown_scheduler


def test_a_virtual_server_of_somebody_else() -> None:
    found = follow_up(AddVirtual(SERVER), errno.EEXIST)
    assert isinstance(found, Failure)
    assert found.foreign


def test_a_virtual_server_that_is_gone() -> None:
    for operation in (AddReal(WEB, REAL), EditReal(WEB, REAL), EditVirtual(SERVER)):
        found = follow_up(operation, errno.ESRCH)
        assert isinstance(found, Failure)
        assert found.vanished


def test_operations_read_as_sentences() -> None:
    assert [str(operation) for operation in ALL] == [
        "add virtual server tcp/10.96.0.10:80 mh persistent 300s flags 0x10",
        "edit virtual server tcp/10.96.0.10:80 mh persistent 300s flags 0x10",
        "remove virtual server tcp/10.96.0.10:80",
        "add real server 10.1.1.2:8080 weight 3 to tcp/10.96.0.10:80",
        "edit real server 10.1.1.2:8080 weight 3 of tcp/10.96.0.10:80",
        "remove real server 10.1.1.2:8080 from tcp/10.96.0.10:80",
    ]


def test_targets() -> None:
    assert len({target(operation) for operation in ALL[:3]}) == 1
    assert len({target(operation) for operation in ALL[3:]}) == 1
    assert len({target(operation) for operation in ALL}) == 2
    assert all(operation.frontend == WEB for operation in ALL)
