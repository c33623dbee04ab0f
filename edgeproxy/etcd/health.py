"""What the outside may know about the store: read by status, health and metrics, written by the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeproxy.etcd.changes import Cause


@dataclass(slots=True)
class StoreHealth:
    """Live figures; times are of the injected monotonic clock, None = never.

    endpoint: the member whose stream is being followed, None while there is none.
    revision: the resume point, everything up to it has been delivered.
    stream_at: last message on a watch; confirmed_at: last linearizable answer ("last contact").
    connects: attempts. resumes: watches taken up without a list. relists: lists by cause.
    audits: completed ones. audit_differences: keys an audit found wrong. dropped_events: at or below
    the resume point. coalesced: how often a slow consumer's backlog was merged.
    problem: one plain sentence while something is wrong, None while following.
    operator_needed: the problem does not pass by itself (login, permission, TLS).
    """

    endpoint: str | None = None
    revision: int = 0
    keys: int = 0
    stream_at: float | None = None
    confirmed_at: float | None = None
    connects: int = 0
    resumes: int = 0
    relists: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(Cause, 0))
    audits: int = 0
    audit_differences: int = 0
    dropped_events: int = 0
    coalesced: int = 0
    login_failures: int = 0
    problem: str | None = "not connected to etcd yet"
    operator_needed: bool = False
