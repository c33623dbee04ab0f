"""Enters operations that were carried out into the book of actual state. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from edgeproxy.books import Actual, Socket
from edgeproxy.kernel.ipvs_operations import (
    AddReal,
    AddVirtual,
    EditReal,
    EditVirtual,
    Operation,
    RemoveReal,
    RemoveVirtual,
)
from edgeproxy.model import Frontend


def enter(operations: Iterable[Operation], actual: Actual) -> None:
    """Enter them in order; what concerns an unknown virtual server is no error."""
    frontend: Frontend | None = None
    reals: dict[Socket, int] | None = None
    for operation in operations:
        if type(operation) is AddReal or type(operation) is EditReal:
            # Usually the same object as before; hashing it is what costs.
            if operation.frontend is not frontend:
                frontend = operation.frontend
                reals = actual.reals.get(frontend)
            if reals is not None:
                real = operation.real
                reals[real.address, real.port] = real.weight
            continue
        frontend = None
        match operation:
            case AddVirtual() | EditVirtual():
                actual.set_server(operation.server)
            case RemoveReal():
                actual.remove_real(operation.frontend, (operation.address, operation.port))
            case RemoveVirtual():
                actual.remove_server(operation.frontend)
