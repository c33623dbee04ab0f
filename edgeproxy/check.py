"""`edgeproxy check`: judge records as the daemon would, without a daemon or a kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgeproxy.catalog import Catalog
from edgeproxy.compile import Host, compile_service, detoured
from edgeproxy.config import Settings, etcd_settings
from edgeproxy.detours import Detours
from edgeproxy.etcd.changes import KeyValue
from edgeproxy.etcd.endpoint import parse_endpoint
from edgeproxy.model import Finding, Reason
from edgeproxy.record_files import read_files
from edgeproxy.selection import Node


class Report(msgspec.Struct, frozen=True):
    """What a check found. revision: of the store, 0 for files."""

    source: str
    revision: int
    services: int
    endpoints: int
    findings: tuple[Finding, ...]


def check_files(paths: Iterable[Path], settings: Settings) -> Report:
    """Judge the records of files, all of them together."""
    texts, findings = [], []
    for path in paths:
        try:
            texts.append((str(path), path.read_bytes()))
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            findings.append(Finding(str(path), 0, "", Reason.BAD_RECORD, message))
    found = read_files(texts, settings.etcd.prefix)
    report = judge("files", found.records, 0, settings)
    # Revisions of files are made up; showing them would mislead.
    judged = tuple(msgspec.structs.replace(finding, revision=0) for finding in report.findings)
    return msgspec.structs.replace(report, findings=(*findings, *found.findings, *judged))


def check_store(settings: Settings) -> Report:
    """Judge what is in the store now.

    Raises:
        StoreError: no endpoint answers, or all refuse; of the last one.
        ConfigurationError: the password file cannot be read.
    """
    endpoint, revision, records = asyncio.run(_read_store(settings))
    return judge(endpoint, records, revision, settings)


def judge(source: str, records: Iterable[KeyValue], revision: int, settings: Settings) -> Report:
    """What a daemon of this configuration would say of these records.

    What only the host itself knows (its kernel, its addresses, what else listens there) is not judged.
    """
    catalog = Catalog(settings.etcd.prefix)
    catalog.replace(records, revision)
    node = Node(settings.node.name, settings.node.zone, frozenset(settings.node.addresses))
    detours = Detours(settings.proxy.anchor_cidrs)
    host = Host(node=node, proxy=settings.proxy, detours=detours)
    findings = list(catalog.findings())
    for name in catalog.services():
        entry = catalog.entry(name)
        if entry is not None:
            detours.allot(detoured(entry.service))
            findings += compile_service(entry, catalog.lost(name), host).findings
    counts = catalog.counts()
    return Report(source, revision, counts.services, counts.endpoints, tuple(sorted(findings)))


async def _read_store(settings: Settings) -> tuple[str, int, list[KeyValue]]:
    """The first endpoint that gives a complete list."""
    from edgeproxy.etcd.client import Connection, Page
    from edgeproxy.etcd.errors import StoreError
    from edgeproxy.etcd.settings import Timing

    etcd = etcd_settings(settings)
    failure: StoreError | None = None
    for text in etcd.endpoints:
        records: list[KeyValue] = []

        def receive(page: Page, records: list[KeyValue] = records) -> None:
            records.extend(page.records)

        connection = Connection(parse_endpoint(text), etcd, Timing())
        try:
            await connection.login()
            header = await connection.list_prefix(etcd.prefix, receive)
        except StoreError as error:
            failure = error
        else:
            return text, header.revision, records
        finally:
            await connection.close()
    assert failure is not None  # the configuration has at least one endpoint
    raise failure
