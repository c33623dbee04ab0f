"""Statuses of gRPC as sentences and kinds; the words are those that grpcio 1.85 and etcd 3.4 send."""

from __future__ import annotations

import pytest

from edgeproxy.etcd import errors
from edgeproxy.etcd.errors import Refused, StoreError, Transient, translate

CONNECT = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
SSL = "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"

CASES = [
    (
        "OUT_OF_RANGE",
        "etcdserver: mvcc: required revision has been compacted",
        errors.HistoryCompacted,
        "compacted",
    ),
    (
        "OUT_OF_RANGE",
        "etcdserver: mvcc: required revision is a future revision",
        errors.HistoryReplaced,
        "newer",
    ),
    ("UNAUTHENTICATED", "etcdserver: invalid auth token", errors.TokenRefused, "login has expired"),
    (
        "INVALID_ARGUMENT",
        "etcdserver: revision of auth store is old",
        errors.TokenRefused,
        "login has expired",
    ),
    (
        "INVALID_ARGUMENT",
        "etcdserver: authentication failed, invalid user ID or password",
        errors.LoginRefused,
        "check etcd.username and password_file",
    ),
    ("INVALID_ARGUMENT", "etcdserver: user name is empty", errors.LoginRefused, "set etcd.username"),
    ("FAILED_PRECONDITION", "etcdserver: authentication is not enabled", errors.LoginRefused, "not enabled"),
    (
        "PERMISSION_DENIED",
        "etcdserver: permission denied",
        errors.PermissionRefused,
        "reads the whole prefix",
    ),
    ("UNAVAILABLE", "etcdserver: no leader", errors.NoLeader, "no leader"),
    ("UNAVAILABLE", "etcdserver: leader changed", errors.NoLeader, "no leader"),
    ("UNAVAILABLE", "etcdserver: request timed out", errors.Unreachable, "no answer in time"),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", errors.Unreachable, "no answer in time"),
    (
        "UNAVAILABLE",
        CONNECT + "Failed to connect to remote host: Connection refused",
        errors.Unreachable,
        "refused",
    ),
    ("UNAVAILABLE", "ping timeout", errors.Unreachable, "stopped answering pings"),
    ("UNAVAILABLE", "keepalive watchdog timeout", errors.Unreachable, "stopped answering pings"),
    (
        "UNAVAILABLE",
        "errors resolving a:1: Domain name not found",
        errors.Unreachable,
        "name cannot be resolved",
    ),
    ("UNAVAILABLE", CONNECT + SSL + "CERTIFICATE_VERIFY_FAILED", errors.TlsRefused, "CA in ca_file"),
    ("UNAVAILABLE", CONNECT + SSL + "WRONG_VERSION_NUMBER", errors.TlsRefused, "use http://"),
    ("UNAVAILABLE", CONNECT + "Unwrap failed (TSI_DATA_CORRUPTED)", errors.TlsRefused, "client certificate"),
    ("UNAVAILABLE", CONNECT + "Hostname Verification Check failed.", errors.TlsRefused, "another name"),
    ("UNAVAILABLE", CONNECT + "Peer name a is not in peer certificate", errors.TlsRefused, "another name"),
    (
        "RESOURCE_EXHAUSTED",
        "CLIENT: Received message larger than max (5 vs. 4)",
        errors.ReplyTooLarge,
        "too large",
    ),
    ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", errors.Unreachable, "too many requests"),
    ("UNAVAILABLE", CONNECT + "Trying to connect an http1.x server", errors.NotEtcd, "check etcd.endpoints"),
    ("UNAVAILABLE", CONNECT + "Handshake read failed (Socket closed)", errors.Unreachable, "use http://"),
    ("UNIMPLEMENTED", "unknown service etcdserverpb.KV", errors.NotEtcd, "not etcd v3"),
    ("INTERNAL", "Exception deserializing response!", errors.Unreachable, "INTERNAL"),
    ("UNAVAILABLE", "", errors.Unreachable, "UNAVAILABLE"),
]


@pytest.mark.parametrize(("code", "details", "kind", "words"), CASES)
def test_translation(code: str, details: str, kind: type[StoreError], words: str) -> None:
    error = translate(code, details, "https://etcd.example:2379")
    assert type(error) is kind
    assert words in str(error)
    assert "https://etcd.example:2379" in str(error)
    assert "TSI_" not in str(error)


def test_only_what_an_operator_must_mend_is_refused() -> None:
    for code, details, kind, _ in CASES:
        error = translate(code, details, "https://a:1")
        refused = kind in (errors.LoginRefused, errors.PermissionRefused, errors.TlsRefused, errors.NotEtcd)
        assert isinstance(error, Refused) == refused
        assert not (isinstance(error, Refused) and isinstance(error, Transient))


def test_tls_words_mean_nothing_without_tls() -> None:
    error = translate("UNAVAILABLE", CONNECT + "Socket closed", "http://a:1")
    assert type(error) is errors.Unreachable
    assert "use https://" in str(error)


def test_equal_troubles_read_equal() -> None:
    one, two = (
        translate("UNAVAILABLE", f"odd thing at ipv4:10.0.0.1:{port} happened", "http://a:1")
        for port in (5001, 5002)
    )
    assert str(one) == str(two)
