"""The grammar of record keys: `<prefix><service>` and `<prefix><service>/endpoints/<endpoint>`."""

from __future__ import annotations

import re
from sys import intern

import msgspec

MAX_NAME = 253
MAX_LABEL = 63
RESERVED = "_meta"

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SERVICE = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ENDPOINT = re.compile(rf"[A-Za-z0-9._:-]{{1,{MAX_NAME}}}")
_KEY = re.compile(rf"({_LABEL}(?:\.{_LABEL})*)(?:/endpoints/([A-Za-z0-9._:-]{{1,{MAX_NAME}}}))?")


class ServiceKey(msgspec.Struct, frozen=True, gc=False):
    """The key of a service record."""

    service: str


class EndpointKey(msgspec.Struct, frozen=True, gc=False):
    """The key of an endpoint record."""

    service: str
    endpoint: str


class ReservedKey(msgspec.Struct, frozen=True, gc=False):
    """A key below `<prefix>_meta/`, kept for the fleet's own use; it is no record."""


class BadKey(msgspec.Struct, frozen=True, gc=False):
    """A key that fits neither grammar; the message says where it departs from it."""

    message: str


ParsedKey = ServiceKey | EndpointKey | ReservedKey | BadKey


def parse_key(prefix: bytes, key: bytes) -> ParsedKey:
    """Tell which record a key is. `prefix` ends in one slash, `/services/` by default."""
    if not key.startswith(prefix):
        return BadKey(f"expected a key below {_shown(prefix)}, found {_shown(key)}")
    try:
        name = key[len(prefix) :].decode("ascii")
    except UnicodeDecodeError:
        return BadKey(f"expected a name of ASCII characters, found {_shown(key)}")
    match = _KEY.fullmatch(name)
    if match is None or match.end(1) > MAX_NAME:
        if name.partition("/")[0] == RESERVED:
            return ReservedKey()
        return BadKey(_explain(name))
    endpoint = match[2]
    if endpoint is None:
        return ServiceKey(intern(match[1]))
    return EndpointKey(intern(match[1]), endpoint)


def service_key(prefix: bytes, service: str) -> bytes:
    """The key of a service's record."""
    return prefix + service.encode("ascii")


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _explain(name: str) -> str:
    service, slash, rest = name.partition("/")
    if problem := _service_problem(service):
        return problem
    if not slash:
        raise AssertionError(f"{name!r} is a good service key")
    if not rest:
        return f"expected no slash at the end: the record of service {service!r} is the key without it"
    folder, slash, endpoint = rest.partition("/")
    if folder != "endpoints":
        return f"expected {service}/endpoints/<endpoint>, found {name!r}"
    if not slash or not endpoint:
        return f"expected a name after {service}/endpoints/, found none"
    return _endpoint_problem(endpoint)


def _service_problem(service: str) -> str:
    """What is wrong with a service name, "" for nothing."""
    if not service:
        return "expected a service name below the prefix, found none"
    if len(service) > MAX_NAME:
        return f"expected a service name of at most {MAX_NAME} characters, found {len(service)}"
    if _SERVICE.fullmatch(service):
        return ""
    if any(len(label) > MAX_LABEL for label in service.split(".")):
        return f"expected labels of at most {MAX_LABEL} characters in the service name, found {service!r}"
    rule = (
        "expected a service name of a-z, 0-9 and - in labels joined by dots, each of which begins"
        f" and ends with a letter or digit; found {service!r}"
    )
    lowered = service.lower()
    if lowered != service and _SERVICE.fullmatch(lowered):
        return f"{rule}: did you mean {lowered!r}?"
    return rule


def _endpoint_problem(endpoint: str) -> str:
    if len(endpoint) > MAX_NAME:
        return f"expected an endpoint name of at most {MAX_NAME} characters, found {len(endpoint)}"
    if "/" in endpoint:
        return f"expected an endpoint name without a slash, found {endpoint!r}"
    assert not _ENDPOINT.fullmatch(endpoint)
    return f"expected an endpoint name of A-Z, a-z, 0-9 and . _ : -, found {endpoint!r}"
