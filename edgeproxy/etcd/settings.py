"""How to reach the store, and the client's times."""

from __future__ import annotations

from pathlib import Path

import msgspec


class EtcdSettings(msgspec.Struct, frozen=True):
    """Section `[etcd]` of the configuration; times in seconds, `audit` 0 switches it off.

    `password` is the secret itself: whoever reads the configuration has read `password_file`.
    """

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    prefix: bytes = b"/services/"
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password: str | None = None
    dial_timeout: float = 5.0
    audit: float = 2700.0

    def __repr__(self) -> str:
        """Without the password: settings end up in logs."""
        return (
            f"EtcdSettings(endpoints={self.endpoints!r}, prefix={self.prefix!r}, username={self.username!r})"
        )


class Timing(msgspec.Struct, frozen=True):
    """Times and sizes that operators need not know; tests shorten them. Seconds unless named.

    backoff_first, backoff_most: wait before the next connection, doubling, each +-50 %.
    refused: the same where trying again cannot help (wrong password, permission, TLS), +-50 %.
    herd: before a list that is not the first, wait a random time up to this.
    probe: between linearizable reads on a running stream, +-50 %; two failures end the connection.
    probe_again: wait after a first failed probe. probe_deadline, page_deadline: of each call.
    audit_grace: how long an event may be in flight before a difference counts as one.
    audit_again: wait after an audit that could not be finished.
    page_size: keys per page; 10,000 costs the server little (it counts the rest for each page).
    keepalive, ping_timeout: HTTP/2 pings; etcd cuts clients off that ping more often than every 5 s.
    backlog: batches that wait for the consumer before they are coalesced.
    """

    backoff_first: float = 0.1
    backoff_most: float = 5.0
    refused: float = 45.0
    herd: float = 5.0
    probe: float = 30.0
    probe_again: float = 2.0
    probe_deadline: float = 5.0
    page_deadline: float = 10.0
    audit_grace: float = 5.0
    audit_again: float = 60.0
    page_size: int = 10_000
    keepalive: float = 10.0
    ping_timeout: float = 5.0
    backlog: int = 1000
