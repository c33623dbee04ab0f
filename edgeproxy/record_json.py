"""JSON of records: bytes to fields of the right type, with every wrong one listed.

A good value is decoded in one go into a wire struct. Only when that fails is it decoded again as
plain JSON and walked along the same struct, so that all its problems are named at once, each with
its path; what is wrong is left out, and the rest can still be judged by its meaning.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from typing import TypeVar, cast

import msgspec
from msgspec import inspect

from edgeproxy.model import Reason
from edgeproxy.records import Problem, Severity

MAX_VALUE = 256 * 1024
MANIFEST = ("spec", "metadata", "apiVersion", "kind", "status")

_ABSENT = msgspec.Raw(b"")


class WirePort(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`ports[]` of a service."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    targetPort: int | str | None = None
    nodePort: int | None = None
    appProtocol: msgspec.Raw = _ABSENT


class WireClientIP(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`sessionAffinityConfig.clientIP` of a service."""

    timeoutSeconds: int | None = None


class WireAffinity(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`sessionAffinityConfig` of a service."""

    clientIP: WireClientIP | None = None


class WireService(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A service record; the fields of type Raw are accepted and ignored."""

    type: str | None = None
    clusterIP: str | None = None
    clusterIPs: list[str | None] | None = None
    ports: list[WirePort | None] | None = None
    externalIPs: list[str | None] | None = None
    loadBalancerIPs: list[str | None] | None = None
    loadBalancerSourceRanges: list[str | None] | None = None
    externalTrafficPolicy: str | None = None
    internalTrafficPolicy: str | None = None
    sessionAffinity: str | None = None
    sessionAffinityConfig: WireAffinity | None = None
    healthCheckNodePort: int | None = None
    publishNotReadyAddresses: bool | None = None
    trafficDistribution: str | None = None
    scheduler: str | None = None
    drainSeconds: int | None = None
    changedAt: str | None = None
    selector: msgspec.Raw = _ABSENT
    ipFamilies: msgspec.Raw = _ABSENT
    ipFamilyPolicy: msgspec.Raw = _ABSENT
    loadBalancerClass: msgspec.Raw = _ABSENT
    loadBalancerIP: msgspec.Raw = _ABSENT
    externalName: msgspec.Raw = _ABSENT
    allocateLoadBalancerNodePorts: msgspec.Raw = _ABSENT


class WireHint(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`{"name": ...}`, as EndpointSlices write a hint."""

    name: str | None = None


class WireHints(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`hints` of an endpoint."""

    forZones: list[str | WireHint | None] | None = None
    forNodes: list[str | WireHint | None] | None = None


class WireEndpoint(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An endpoint record."""

    address: str | None = None
    port: int | None = None
    ports: dict[str, int | None] | None = None
    nodeName: str | None = None
    zone: str | None = None
    weight: int | None = None
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None
    hints: WireHints | None = None
    changedAt: str | None = None


Wire = TypeVar("Wire", WireService, WireEndpoint)

_SERVICE_DECODER = msgspec.json.Decoder(WireService)
_ENDPOINT_DECODER = msgspec.json.Decoder(WireEndpoint)
_FAILURES = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)


def service_fields(value: bytes) -> tuple[WireService | None, list[Problem]]:
    """The fields of a service record; None if the value is no JSON object at all."""
    try:
        if len(value) <= MAX_VALUE:
            return _SERVICE_DECODER.decode(value), []
    except _FAILURES:
        pass
    return _walk(value, WireService, '{"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}')


def endpoint_fields(value: bytes) -> tuple[WireEndpoint | None, list[Problem]]:
    """The fields of an endpoint record in JSON; None if the value is no JSON object at all."""
    try:
        if len(value) <= MAX_VALUE:
            return _ENDPOINT_DECODER.decode(value), []
    except _FAILURES:
        pass
    return _walk(value, WireEndpoint, '{"address": "10.1.1.2"}, or the short form 10.1.1.2:8080')


def shown(value: object) -> str:
    """A value as a message shows it: scalars as JSON, cut at 60 characters, containers by their kind."""
    match value:
        case None:
            return "null"
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            text = msgspec.json.encode(value).decode()
            return text if len(text) <= 60 else f'{text[:57]}..."'
        case bool():
            return "true" if value else "false"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unusable(value: bytes, example: str) -> str:
    """Why a value can't be the JSON object it should be."""
    wanted = f"expected a JSON object such as {example}"
    if len(value) > MAX_VALUE:
        return f"expected a value of at most {MAX_VALUE} bytes, found {len(value)}"
    if not value.strip():
        return f"{wanted}, found an empty value"
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        return f"{wanted} in UTF-8, found byte 0x{value[error.start]:02x} at offset {error.start}"
    if text.startswith("\ufeff"):
        return f"{wanted}, found a byte order mark before it: write the value without one"
    try:
        found = msgspec.json.decode(value)
    except RecursionError:
        return f"{wanted}, found lists or objects nested too deep to read"
    except (msgspec.MsgspecError, ValueError) as error:
        return f"{wanted}, found {shown(text.strip())}, which is not JSON ({error})"
    return f"{wanted}, found {shown(found)}"


def _walk(value: bytes, wire: type[Wire], example: str) -> tuple[Wire | None, list[Problem]]:
    found: object = None
    if len(value) <= MAX_VALUE:
        with contextlib.suppress(*_FAILURES):
            found = msgspec.json.decode(value)
    if not isinstance(found, dict):
        return None, [Problem("", unusable(value, example))]
    problems: list[Problem] = []
    kind = cast(inspect.StructType, inspect.type_info(wire))
    sound = _object(_without_manifest(found, kind, problems), kind, "", problems)
    return msgspec.convert(sound, wire), problems


def _without_manifest(
    found: dict[str, object], kind: inspect.StructType, problems: list[Problem]
) -> dict[str, object]:
    if kind.cls is not WireService or not any(name in found for name in MANIFEST):
        return found
    names = ", ".join(f"`{name}`" for name in MANIFEST if name in found)
    message = f"found {names}: this looks like a whole manifest; paste what is under `spec`"
    problems.append(Problem("", message, Severity.WARNING, Reason.UNKNOWN_FIELD))
    return {name: value for name, value in found.items() if name not in MANIFEST}


def _object(
    found: Mapping[str, object], kind: inspect.StructType, path: str, problems: list[Problem]
) -> dict[str, object]:
    fields = {field.encode_name: field for field in kind.fields}
    sound: dict[str, object] = {}
    for name, value in found.items():
        where = f"{path}.{name}" if path else name
        if name in fields:
            sound[name] = _sound(value, fields[name].type, where, problems)
        else:
            message = f"unknown field, ignored{_suggestion(name, list(fields), path)}"
            problems.append(Problem(where, message, Severity.WARNING, Reason.UNKNOWN_FIELD))
    return {name: value for name, value in sound.items() if value is not None}


def _sound(value: object, kind: inspect.Type, path: str, problems: list[Problem]) -> object:
    """The value where it has the right type, and None, with a problem listed, where it has not."""
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    if value is None:
        return None
    for each in kinds:
        match each, value:
            case inspect.RawType(), _:
                return None
            case (inspect.StrType(), str()) | (inspect.BoolType(), bool()):
                return value
            case inspect.IntType(), int() if not isinstance(value, bool):
                return value
            case inspect.ListType(), list():
                return [
                    _sound(item, each.item_type, f"{path}[{index}]", problems)
                    for index, item in enumerate(value)
                ]
            case inspect.DictType(), dict():
                return {
                    name: _sound(item, each.value_type, f"{path}.{name}", problems)
                    for name, item in value.items()
                }
            case inspect.StructType(), dict():
                return _object(value, each, path, problems)
    problems.append(
        Problem(path, f"expected {_expected(kinds)}, found {shown(value)}{_quoted(kinds, value)}")
    )
    return None


def _expected(kinds: tuple[inspect.Type, ...]) -> str:
    names = {
        inspect.StrType: "a text",
        inspect.IntType: "a whole number",
        inspect.BoolType: "true or false",
        inspect.ListType: "a list",
        inspect.DictType: "an object",
        inspect.StructType: "an object",
    }
    return " or ".join(names[type(kind)] for kind in kinds if type(kind) in names)


def _quoted(kinds: tuple[inspect.Type, ...], value: object) -> str:
    """Advice for a number or truth value that was written as a text."""
    if not isinstance(value, str):
        return ""
    number = value.strip().lstrip("-").isdecimal() and any(
        isinstance(kind, inspect.IntType) for kind in kinds
    )
    truth = value in ("true", "false") and any(isinstance(kind, inspect.BoolType) for kind in kinds)
    return ": leave out the quotes" if number or truth else ""


_ELSEWHERE = {
    **dict.fromkeys(("port", "protocol", "targetPort", "nodePort", "name"), "ports[]"),
    "timeoutSeconds": "sessionAffinityConfig.clientIP",
    "clientIP": "sessionAffinityConfig",
    "forZones": "hints",
    "forNodes": "hints",
}


def _suggestion(name: str, known: list[str], path: str) -> str:
    """Advice for an unknown field: the nearest name here, or where in the record the name belongs."""
    if near := _nearest(name, known):
        return f": did you mean `{near}`?"
    near = "" if path else _nearest(name, list(_ELSEWHERE))
    if near and any(_ELSEWHERE[near].startswith(field) for field in known):
        return f": did you mean `{near}` in `{_ELSEWHERE[near]}`?"
    return ""


def _nearest(name: str, known: list[str]) -> str:
    plain = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), plain, 1, 0.7)
    return plain[near[0]] if near else ""
