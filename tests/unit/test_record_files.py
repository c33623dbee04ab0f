"""Record files: keys with and without prefix, short forms, and files that are none."""

from __future__ import annotations

import pytest

from edgeproxy.record_files import full_key, read_files


@pytest.mark.parametrize(
    ("written", "prefix", "key"),
    [
        ("/services/web", "/services/", "/services/web"),
        ("services/web", "/services/", "/services/web"),
        ("web", "/services/", "/services/web"),
        ("web/endpoints/a", "/services/", "/services/web/endpoints/a"),
        ("/other/web", "/services/", "/other/web"),
        ("edge/web", "edge/", "edge/web"),
        ("web", "edge/", "edge/web"),
    ],
)
def test_keys_in_full_or_below_the_prefix(written: str, prefix: str, key: str) -> None:
    assert full_key(written, prefix) == key


def test_records_come_in_the_order_of_the_files() -> None:
    found = read_files(
        [
            ("one.json", b'{"web": {"ports": [{"port": 80}]}, "web/endpoints/a": " 10.0.0.1:80 "}'),
            ("two.json", b'{"/services/api": {"ports": []}}'),
        ],
        "/services/",
    )

    assert not found.findings
    assert [(record.key, record.value, record.create_revision) for record in found.records] == [
        (b"/services/web", b'{"ports":[{"port":80}]}', 1),
        (b"/services/web/endpoints/a", b" 10.0.0.1:80 ", 2),
        (b"/services/api", b'{"ports":[]}', 3),
    ]


def test_a_member_given_twice_is_left_for_the_record_reader_to_judge() -> None:
    (record,) = read_files(
        [("f", b'{"web": {"type": "NodePort", "type": null, "x": [1.5, true]}}')], "/s/"
    ).records

    assert record.value == b'{"type":"NodePort","type":null,"x":[1.5,true]}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"web": \n {"ports": }}', "not JSON: Expecting value at line 2, column 12"),
        (b"\xff{}", "not UTF-8 text: byte 0"),
        (b'["web"]', "expected a JSON object of key -> record"),
        (b"", "not JSON: Expecting value at line 1, column 1"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_file_that_is_none(content: bytes, message: str) -> None:
    found = read_files([("bad.json", content), ("good.json", b'{"web": "10.0.0.1"}')], "/services/")

    (finding,) = found.findings
    assert finding.key == "bad.json"
    assert message in finding.message
    assert len(found.records) == 1


def test_a_key_given_twice() -> None:
    found = read_files([("one", b'{"web": 1}'), ("two", b'{"/services/web": 2}')], "/services/")

    (finding,) = found.findings
    assert finding.key == "/services/web"
    assert finding.message == "given twice, the second time in two"
