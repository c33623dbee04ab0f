"""Record files: what `edgeproxy check FILE...` reads.

A record file is one JSON object of key -> record:

    {
      "/services/web": {"clusterIP": "10.96.0.10", "ports": [{"port": 8000}]},
      "web/endpoints/a": {"address": "10.1.1.2"},
      "web/endpoints/b": "10.1.2.2:80"
    }

Keys may be written in full or without the prefix. A string is the short form of an endpoint. Pure.
"""

from __future__ import annotations

import json

import msgspec

from edgeproxy.etcd.changes import KeyValue
from edgeproxy.model import Finding, Reason


class FileRecords(msgspec.Struct, frozen=True):
    """What one or more files hold: records in the order of the files, and what is wrong with the files."""

    records: tuple[KeyValue, ...]
    findings: tuple[Finding, ...]


class NotARecordFile(Exception):
    """The file as a whole cannot be read; the message says why."""


class _Pairs(list[tuple[str, object]]):
    """The members of a JSON object as written, so that a key given twice can be told."""


def read_files(texts: list[tuple[str, bytes]], prefix: str) -> FileRecords:
    """Read `(name, content)` of each file.

    Revisions are the order in the files: of two records in conflict the earlier one wins, as the
    earlier created one does in the store.
    """
    records: dict[bytes, KeyValue] = {}
    findings: list[Finding] = []
    for name, content in texts:
        try:
            pairs = [(written, _record_bytes(value)) for written, value in _pairs(content)]
        except RecursionError:
            findings.append(_bad(name, "nested too deeply"))
            continue
        except NotARecordFile as error:
            findings.append(_bad(name, str(error)))
            continue
        for written, value in pairs:
            key = full_key(written, prefix).encode()
            if key in records:
                findings.append(_bad(key.decode(), f"given twice, the second time in {name}"))
                continue
            revision = len(records) + 1
            records[key] = KeyValue(key, value, revision, revision)
    return FileRecords(tuple(records.values()), tuple(findings))


def full_key(written: str, prefix: str) -> str:
    """The key in the store for a key as written in a file."""
    if written.startswith(("/", prefix)):
        return written
    return "/" + written if ("/" + written).startswith(prefix) else prefix + written


def _pairs(content: bytes) -> _Pairs:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotARecordFile(f"not UTF-8 text: byte {error.start}") from None
    try:
        found = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise NotARecordFile(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if not isinstance(found, _Pairs):
        raise NotARecordFile('expected a JSON object of key -> record, such as {"web": {"ports": [...]}}')
    return found


def _record_bytes(value: object) -> bytes:
    """The value as it would be put into the store."""
    if isinstance(value, str):
        return value.encode()
    return _json(value).encode()


def _json(value: object) -> str:
    """JSON again, members in their order and also those given twice: the record's reader judges them."""
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{_json(member)}" for key, member in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return json.dumps(value)


def _bad(key: str, message: str) -> Finding:
    return Finding(key, 0, "", Reason.BAD_RECORD, message)
