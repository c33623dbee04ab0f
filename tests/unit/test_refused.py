"""Refusals of the kernel as findings of the services they concern."""

from __future__ import annotations

import errno

import pytest

from edgeproxy.address import parse
from edgeproxy.books import Touched, key_of
from edgeproxy.catalog import Catalog
from edgeproxy.etcd.changes import KeyValue
from edgeproxy.kernel.ipvs_operations import AddReal, AddVirtual, EditReal, EditVirtual, Operation, failure
from edgeproxy.model import Element, Frontend, Protocol, RealServer, Reason, SetName, VirtualServer
from edgeproxy.refused import Refused

WEB = Frontend(parse("10.96.0.10"), Protocol.TCP, 80)
SERVER = VirtualServer(WEB, "nosuch")
REAL = RealServer(parse("10.1.1.2"), 80)
OWNERS = {WEB: "web"}


@pytest.fixture
def catalog() -> Catalog:
    catalog = Catalog("/services/")
    record = KeyValue(b"/services/web", b'{"clusterIP":"10.96.0.10","ports":[{"port":80}]}', 3, 4)
    catalog.replace([record], 4)
    return catalog


@pytest.mark.parametrize(
    ("operation", "number", "path", "reason"),
    [
        (AddVirtual(SERVER), errno.ENOENT, "scheduler", Reason.UNKNOWN_SCHEDULER),
        (EditVirtual(SERVER), errno.ENOENT, "scheduler", Reason.UNKNOWN_SCHEDULER),
        (AddReal(WEB, REAL), errno.EINVAL, "", Reason.KERNEL),
        (AddVirtual(SERVER), errno.ENOMEM, "", Reason.KERNEL),
    ],
)
def test_a_finding_until_it_is_tried_again(
    catalog: Catalog, operation: Operation, number: int, path: str, reason: Reason
) -> None:
    refused = Refused()
    assert refused.note([failure(operation, number)], OWNERS, catalog) == set()
    (finding,) = refused.findings()
    assert (finding.key, finding.revision, finding.path, finding.reason) == ("/services/web", 4, path, reason)
    assert refused.again() == Touched({WEB})
    refused.forget(Touched({WEB, Frontend(WEB.address, Protocol.UDP, 53)}))
    assert not list(refused.findings())


def test_without_a_service_it_is_the_hosts(catalog: Catalog) -> None:
    refused = Refused()
    refused.note([failure(EditReal(WEB, REAL), errno.EINVAL)], {}, catalog)
    (finding,) = refused.findings()
    assert (finding.key, finding.revision) == ("", 0)


def test_a_virtual_server_that_somebody_removed_is_planned_again(catalog: Catalog) -> None:
    refused = Refused()
    assert refused.note([failure(EditReal(WEB, REAL), errno.ESRCH)], OWNERS, catalog) == {WEB}
    assert not list(refused.findings())


def test_one_that_could_not_be_made_is_one_finding_and_not_planned_again_at_once(catalog: Catalog) -> None:
    refused = Refused()
    failures = [failure(AddVirtual(SERVER), errno.ENOENT), failure(AddReal(WEB, REAL), errno.ESRCH)]
    assert refused.note(failures, OWNERS, catalog) == set()
    (finding,) = refused.findings()
    assert finding.reason is Reason.UNKNOWN_SCHEDULER


def test_one_of_somebody_else_is_a_finding_of_the_book_of_actual_state(catalog: Catalog) -> None:
    refused = Refused()
    failures = [failure(AddVirtual(SERVER), errno.EEXIST), failure(AddReal(WEB, REAL), errno.EEXIST)]
    assert refused.note(failures, OWNERS, catalog) == set()
    assert not list(refused.findings())


def test_a_refused_element_is_a_finding_of_its_service(catalog: Catalog) -> None:
    element = Element(SetName.FRONTENDS4, (WEB.address, WEB.protocol, WEB.port), "cluster_ip4", comment="web")
    refused = Refused()
    refused.note_elements([(element, "it overlaps")], catalog)
    (finding,) = refused.findings()
    assert (finding.key, finding.reason, finding.message) == ("/services/web", Reason.KERNEL, "it overlaps")
    assert refused.again() == Touched(elements={key_of(element)})
    refused.forget(refused.again())
    assert not list(refused.findings())
