"""Every behaviour of kube-proxy's test catalogue by number, and which ones cannot apply here.

The numbers are fixed: a gap is a number that was withdrawn, not one that was forgotten.
"""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True):
    """A group of behaviours. numbers: those that exist."""

    title: str
    numbers: tuple[int, ...]


def _numbers(*parts: range | int) -> tuple[int, ...]:
    return tuple(n for part in parts for n in ((part,) if isinstance(part, int) else part))


SECTIONS = (
    Section("Records and change tracking", _numbers(range(1, 37))),
    Section("Endpoint selection", _numbers(range(40, 49), range(50, 56), 57, 58, range(60, 64))),
    Section("Cluster IPs", _numbers(range(70, 77), range(78, 85), 86, 88, 89)),
    Section("Node ports", _numbers(range(100, 109), range(111, 118))),
    Section("External and load balancer addresses", _numbers(range(120, 138))),
    Section("Session affinity", _numbers(range(140, 146), 147)),
    Section(
        "Virtual servers, drains and what belongs to others",
        _numbers(range(150, 153), range(154, 158), 159, range(161, 171)),
    ),
    Section("UDP and connection tracking", _numbers(range(180, 186), 187, 189, 191, 193, 194, 196, 197)),
    Section("Terminating endpoints", _numbers(200, 201, 202, 204)),
    Section("Health", _numbers(range(210, 216), 217, 218, range(220, 226))),
    Section("Process, configuration, timing", _numbers(range(230, 242))),
)


def number_of(number: int) -> str:
    """`KP-007`."""
    return f"KP-{number:03}"


ALL = tuple(number_of(number) for section in SECTIONS for number in section.numbers)


class Inapplicable(msgspec.Struct, frozen=True):
    """A behaviour that has no counterpart here. text: the behaviour; reason: why, and what is instead."""

    text: str
    reason: str


_LABELS = (
    "the label is the API server's way to hand a Service to another proxy; here a record that no host "
    "is to serve is not written below the prefix"
)
_INGRESS = (
    "there is no status that a cloud controller fills in: `loadBalancerIPs` names the addresses to serve, and "
    "one that an outside load balancer answers is left out of it"
)

RECORDS_TO_ADDRESSES = {
    "KP-013": Inapplicable(
        "Ingress entries of a load balancer: ip with mode VIP, Proxy or none; host name", _INGRESS
    ),
    "KP-016": Inapplicable("The label service-proxy-name takes a Service out of service", _LABELS),
    "KP-017": Inapplicable("The label headless takes a Service out of service", _LABELS),
    "KP-020": Inapplicable(
        "Of an endpoint with two addresses the first one counts",
        "an endpoint record holds one `address`; another is another record",
    ),
    "KP-123": Inapplicable("A load balancer address with ipMode Proxy is not intercepted", _INGRESS),
}
"""Numbers below KP-140."""

AFFINITY_TO_PROCESS: dict[str, Inapplicable] = {}
"""Numbers from KP-140 on."""

INAPPLICABLE = RECORDS_TO_ADDRESSES | AFFINITY_TO_PROCESS
