"""What can go wrong with the store, by what there is to do about it.

    StoreError
    ├── Transient        the next endpoint, soon: the store is away, hung, leaderless, restarting
    │   ├── Unreachable
    │   ├── NoLeader
    │   ├── TokenRefused     log in again; met when a token expired or etcd restarted
    │   └── StreamEnded
    ├── Refused          trying again cannot help, an operator must act: retried slowly
    │   ├── LoginRefused
    │   ├── PermissionRefused
    │   ├── TlsRefused
    │   └── NotEtcd
    ├── HistoryLost      the records must be listed anew
    │   ├── HistoryCompacted
    │   └── HistoryReplaced
    ├── AuditDiffered    an audit found that the stream had lost something: list anew
    └── ReplyTooLarge    ask for a smaller page

`translate` turns gRPC's status into one of these. Its sentences go to log and health as they are;
they never hold a password or token.
"""

from __future__ import annotations

import re


class StoreError(Exception):
    """Anything that kept a call or a stream from doing its work; `str()` is a plain sentence."""


class Transient(StoreError):
    """Likely to pass by itself."""


class Unreachable(Transient):
    """No answer from this endpoint: refused, reset, timed out, or the process hangs."""


class NoLeader(Transient):
    """The member answers but has lost the majority."""


class TokenRefused(Transient):
    """The login token is no longer valid."""


class StreamEnded(Transient):
    """The watch is over without a reason that tells more."""


class Refused(StoreError):
    """Needs an operator."""


class LoginRefused(Refused):
    """User or password is wrong, or a login is wanted and none is configured."""


class PermissionRefused(Refused):
    """The user may not read (or write) these keys."""


class TlsRefused(Refused):
    """The TLS files are unusable, or one side does not accept the other's certificate."""


class NotEtcd(Refused):
    """Something answers at the endpoint, but it does not speak etcd v3."""


class HistoryLost(StoreError):
    """Changes cannot be followed from where we stopped."""


class HistoryCompacted(HistoryLost):
    """The revision asked for has been compacted; `revision` is the oldest one left, 0 if not told."""

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class HistoryReplaced(HistoryLost):
    """The store's history is not the one we followed: restored, wiped, or another cluster."""


class AuditDiffered(StoreError):
    """What was delivered is not what the store holds, and no event in flight explains it."""


class ReplyTooLarge(StoreError):
    """The answer is above our receive limit."""


# What gRPC and BoringSSL say when TLS fails -> what an operator should read.
_TLS_WORDS = (
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not signed by a CA in ca_file, or is out of date"),
    ("is not in peer certificate", "its certificate is for another name than the one in etcd.endpoints"),
    (
        "Hostname Verification Check failed",
        "its certificate is for another name than the one in etcd.endpoints",
    ),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS: use http:// in etcd.endpoints"),
    (
        "TSI_DATA_CORRUPTED",
        "it wants a client certificate signed by its own CA: check etcd.cert_file and etcd.key_file",
    ),
    ("CERTIFICATE_REQUIRED", "it wants a client certificate: set etcd.cert_file and etcd.key_file"),
    ("UNKNOWN_CA", "it does not trust our client certificate (etcd.cert_file): another CA signed it"),
    ("BAD_CERTIFICATE", "it does not accept our client certificate (etcd.cert_file)"),
    ("CERTIFICATE_EXPIRED", "our client certificate (etcd.cert_file) is out of date"),
    ("TSI_PROTOCOL_FAILURE", "the TLS handshake failed"),
    ("Ssl handshake failed", "the TLS handshake failed"),
)

# grpcio 1.85, grpcio 1.51.
_NOT_HTTP2 = ("Failed parsing HTTP/2", "Trying to connect an http1")

_UNREACHABLE_WORDS = (
    ("Connection refused", "the connection was refused; nothing listens there"),
    ("No route to host", "there is no route to it"),
    ("Network is unreachable", "there is no route to it"),
    ("DNS", "its name cannot be resolved"),
    ("Domain name not found", "its name cannot be resolved"),
    ("ping timeout", "it stopped answering pings; the process hangs or the network lost it"),
    ("keepalive watchdog timeout", "it stopped answering pings; the process hangs or the network lost it"),
    ("timed out before receiving SETTINGS", "no answer in time"),
    ("Connection reset", "the connection was reset"),
    ("Socket closed", "the connection was closed"),
    ("GOAWAY", "it closed the connection"),
)


def translate(code: str, details: str, endpoint: str) -> StoreError:
    """The error for a gRPC status; `code` is the status's name, e.g. UNAVAILABLE."""
    where = f"etcd at {endpoint}"
    text = details.removeprefix("etcdserver: ")
    if "required revision has been compacted" in text:
        return HistoryCompacted(f"{where}: the revision asked for has been compacted")
    if "required revision is a future revision" in text:
        return HistoryReplaced(f"{where}: the revision asked for is newer than the store")
    if "invalid auth token" in text or "revision of auth store is old" in text or code == "UNAUTHENTICATED":
        return TokenRefused(f"{where}: the login has expired ({text})")
    if "permission denied" in text or code == "PERMISSION_DENIED":
        return PermissionRefused(
            f"{where}: permission denied; grant the user a role that reads the whole prefix"
        )
    if "authentication failed" in text:
        return LoginRefused(f"{where}: wrong user name or password; check etcd.username and password_file")
    if "user name is empty" in text:
        return LoginRefused(f"{where}: it wants a login; set etcd.username and etcd.password_file")
    if "authentication is not enabled" in text:
        return LoginRefused(f"{where}: authentication is not enabled")
    if "no leader" in text or "leader changed" in text:
        return NoLeader(f"{where}: no leader; the cluster has lost its majority or is electing")
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in text:
        return ReplyTooLarge(f"{where}: the answer is too large ({text})")
    if (
        code == "UNIMPLEMENTED"
        or "http2 header with status" in text
        or any(word in text for word in _NOT_HTTP2)
    ):
        return NotEtcd(f"{where}: something answers there, but not etcd v3 ({text}); check etcd.endpoints")
    return _connection_error(code, text, where, endpoint.startswith("https"))


def _connection_error(code: str, text: str, where: str, tls: bool) -> StoreError:
    """TLS and transport failures, which gRPC tells apart by their wording only."""
    if tls:
        for word, sentence in _TLS_WORDS:
            if word in text:
                return TlsRefused(f"{where}: {sentence}")
    if "failed to connect" in text and "Socket closed" in text:
        hint = (
            "in the TLS handshake; if it has no TLS, use http://"
            if tls
            else "at once; if it has TLS, use https://"
        )
        return Unreachable(f"{where}: it closed the connection {hint}")
    for word, sentence in _UNREACHABLE_WORDS:
        if word in text:
            return Unreachable(f"{where}: {sentence}")
    if code == "DEADLINE_EXCEEDED" or "request timed out" in text:
        return Unreachable(f"{where}: no answer in time")
    # Ports and addresses of single attempts vary; without them equal troubles read equal.
    return Unreachable(f"{where}: {re.sub(r'ipv[46]:[^ ]+', 'peer', text) or code} ({code})")


def translate_cancel(reason: str, endpoint: str) -> StoreError:
    """The error for a watch that the server cancelled with `reason` (no compaction)."""
    inner = reason.split("desc = ", 1)[-1]
    error = translate("", inner, endpoint)
    if type(error) is Unreachable:
        return StreamEnded(f"etcd at {endpoint}: the watch was cancelled ({inner or 'no reason given'})")
    return error
