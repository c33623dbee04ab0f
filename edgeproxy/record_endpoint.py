"""Endpoint records: a JSON object, or the short forms `10.1.1.2`, `10.1.1.2:8080`, `[fd00::2]:8080`."""

from __future__ import annotations

from sys import intern

from edgeproxy.address import Address, parse
from edgeproxy.record_json import WireEndpoint, WireHint, endpoint_fields
from edgeproxy.record_values import MAX_PORT, Problems, changed_at, special
from edgeproxy.records import Endpoint, Parsed, Problem

MAX_WEIGHT = 65535

_SHORT = "the short form 10.1.1.2, 10.1.1.2:8080 or [fd00::2]:8080"
_UNSPECIFIED = Address(bytes(4))


def endpoint_from_value(value: bytes) -> Parsed[Endpoint]:
    """Read an endpoint record; never raises, whatever the bytes are."""
    if value.startswith(b"{"):
        fields, problems = endpoint_fields(value)
        return _from_fields(fields, problems)
    text = value.strip()
    if not text.startswith(b"{") and len(text) <= 64 and (found := _short(text)) is not None:
        return found
    fields, problems = endpoint_fields(text)
    return _from_fields(fields, problems)


def _short(text: bytes) -> Parsed[Endpoint] | None:
    """The short form, or None if the text does not resemble one."""
    try:
        host, port = _split(text.decode("ascii"))
    except UnicodeDecodeError:
        return None
    try:
        address = parse(host)
    except ValueError:
        if not any(character in b".:" for character in text) or text.startswith((b'"', b"[[")):
            return None
        message = f"expected a JSON object or {_SHORT}, found {text.decode()!r}"
        return Parsed(None, (Problem("", message),))
    number = 0
    if port is not None:
        number = int(port) if port.isdecimal() and len(port) <= 5 else 0
        if not 1 <= number <= MAX_PORT:
            message = f"expected a port number from 1 to {MAX_PORT} after {host}, found {port!r}"
            return Parsed(None, (Problem("", message),))
    if kind := special(address):
        message = f"expected the address of a backend, found {host}, which is {kind}"
        return Parsed(None, (Problem("", message),))
    return Parsed(Endpoint(address, number))


def _split(text: str) -> tuple[str, str | None]:
    """Host and port; the port is None where there is no colon for one."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if not rest:
            return host if ":" in host else text, None
        return (host, rest[1:]) if rest.startswith(":") and ":" in host else (text, None)
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, None


def _from_fields(fields: WireEndpoint | None, shape: list[Problem]) -> Parsed[Endpoint]:
    if fields is None:
        return Parsed(None, tuple(shape))
    problems = Problems(shape)
    ready = fields.ready is not False
    if fields.terminating and fields.ready is None:
        message = "the endpoint still takes new connections, as `ready` is not false: write both"
        problems.warn("terminating", message)
    endpoint = Endpoint(
        address=_address(fields.address, problems),
        port=0 if fields.port is None else problems.within("port", fields.port, 1, MAX_PORT),
        ports=_ports(fields.ports, problems) if fields.ports else (),
        node_name=intern(fields.nodeName.strip().lower()) if fields.nodeName else "",
        zone=intern(fields.zone.strip()) if fields.zone else "",
        weight=1 if fields.weight is None else problems.within("weight", fields.weight, 0, MAX_WEIGHT),
        ready=ready,
        serving=ready if fields.serving is None else fields.serving,
        terminating=fields.terminating is True,
        zone_hints=_names(fields.hints.forZones) if fields.hints else (),
        node_hints=tuple(name.lower() for name in _names(fields.hints.forNodes)) if fields.hints else (),
        changed_at=changed_at(fields.changedAt, problems) if fields.changedAt else 0.0,
    )
    return Parsed(None if problems.fatal else endpoint, problems.listed())


def _address(text: str | None, problems: Problems) -> Address:
    if not text:
        problems.error("address", "expected the IP address of the backend, found none")
        return _UNSPECIFIED
    try:
        address = parse(text)
    except ValueError as error:
        problems.error("address", f"expected an IP address such as 10.1.1.2 or fd00::2: {error}")
        return _UNSPECIFIED
    if kind := special(address):
        problems.error("address", f"expected the address of a backend, found {text}, which is {kind}")
    return address


def _ports(ports: dict[str, int | None], problems: Problems) -> tuple[tuple[str, int], ...]:
    given = sorted((name, number) for name, number in ports.items() if number is not None)
    return tuple(
        (intern(name), problems.within(f"ports.{name}", number, 1, MAX_PORT)) for name, number in given
    )


def _names(hints: list[str | WireHint | None] | None) -> tuple[str, ...]:
    """The names of a list of hints, sorted; a hint is `"a"` or `{"name": "a"}`."""
    given = (hint.name if isinstance(hint, WireHint) else hint for hint in hints or ())
    return tuple(sorted({intern(name.strip()) for name in given if name and name.strip()}))
