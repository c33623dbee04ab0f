"""What a daemon leaves on disk for the next one, so that a restart need not begin with nothing. Pure.

The file `kept` of the state directory holds the ledger of the store, the records as they were
understood and the part compiled from each service, all of one revision. The next daemon asks the
store whether that history is still its own and what was written since (`etcd.session`), and decodes
and compiles only that: a restart costs what has changed, not what there is.

Nothing depends on the file. It is believed only if the very same program wrote it to its end and,
for the compiled parts, if the host and the settings are the same; else it is as if it were not there.
It says nothing about the kernel, which is always read.

Layout: a line that names the format, then frames, each with its length and CRC-32 before it, each a
msgpack value: the `Header`, the `LedgerImage`, the `CatalogImage` without its services, and some
services at a time. A header at the end, equal to the first, says that the file is whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, TypeVar
from zlib import crc32

import msgspec

from edgeproxy.address import Address
from edgeproxy.books import Part
from edgeproxy.catalog import CatalogImage, ServiceImage
from edgeproxy.etcd.ledger import LedgerImage
from edgeproxy.kernel.nft_sets import SETS, Field
from edgeproxy.model import Element, Protocol
from edgeproxy.refusals import Refusals
from edgeproxy.selection import Node
from edgeproxy.settings import Proxy
from edgeproxy.versions import ServiceVersion

FORMAT = b"edgeproxy kept 1\n"
SERVICES_A_FRAME = 64
"""Some milliseconds of encoding, so that whoever writes the file can do other things in between."""
_FRAME = struct.Struct("<II")


class Basis(msgspec.Struct, frozen=True):
    """What compiled parts depend on beside the records; `build` names the very program."""

    build: str
    prefix: str
    node: Node
    proxy: Proxy
    refusals: Refusals


class Kept(msgspec.Struct, frozen=True):
    """The state of a daemon at one revision.

    parts: what each service was compiled to; services left out have to be compiled.
    """

    basis: Basis
    ledger: LedgerImage
    catalog: CatalogImage
    parts: dict[str, Part]


class _Header(msgspec.Struct, frozen=True):
    basis: Basis
    services: int


class _Service(msgspec.Struct, frozen=True, array_like=True):
    """A `ServiceImage` whose endpoints are left as they are in the file."""

    name: str
    version: ServiceVersion | None
    count: int
    endpoints: msgspec.Raw


S = TypeVar("S", ServiceImage, _Service)


class _Services(msgspec.Struct, Generic[S], frozen=True, array_like=True):
    """One frame of services, the parts of those that have one among them."""

    services: tuple[S, ...]
    parts: dict[str, Part]


_encode = msgspec.msgpack.Encoder().encode
_HEADER = msgspec.msgpack.Decoder(_Header)
_LEDGER = msgspec.msgpack.Decoder(LedgerImage)
_CATALOG = msgspec.msgpack.Decoder(CatalogImage)
_SERVICES = msgspec.msgpack.Decoder(_Services[_Service])


def encode(kept: Kept) -> Iterator[bytes]:
    """The content of the file, piece by piece."""
    services = kept.catalog.services
    header = _frame(_Header(kept.basis, len(services)))
    yield FORMAT + header
    yield _frame(kept.ledger)
    yield _frame(msgspec.structs.replace(kept.catalog, services=()))
    for start in range(0, len(services), SERVICES_A_FRAME):
        some = services[start : start + SERVICES_A_FRAME]
        parts = {each.name: kept.parts[each.name] for each in some if each.name in kept.parts}
        yield _frame(_Services(some, parts))
    yield header


def decode(content: bytes, build: str, prefix: str) -> Kept | None:
    """What a file holds; None if another program wrote it, for another prefix, or not to its end."""
    try:
        return _decode(content, build, prefix)
    except (msgspec.MsgspecError, struct.error, ValueError, KeyError):
        return None


def _decode(content: bytes, build: str, prefix: str) -> Kept | None:
    if not content.startswith(FORMAT):
        return None
    frames = _frames(memoryview(content)[len(FORMAT) :])
    head = next(frames)
    header = _HEADER.decode(head)
    if (header.basis.build, header.basis.prefix) != (build, prefix):
        return None
    ledger, catalog = _LEDGER.decode(next(frames)), _CATALOG.decode(next(frames))
    services: list[ServiceImage] = []
    parts: dict[str, Part] = {}
    while len(services) < header.services:
        some = _SERVICES.decode(next(frames))
        services += [
            # A copy, lest each hold on to the whole file.
            ServiceImage(each.name, each.version, each.count, each.endpoints.copy())
            for each in some.services
        ]
        parts.update((name, _with_protocols(part)) for name, part in some.parts.items())
    if next(frames) != head:
        return None
    return Kept(header.basis, ledger, msgspec.structs.replace(catalog, services=tuple(services)), parts)


def _frame(value: msgspec.Struct) -> bytes:
    encoded = _encode(value)
    return _FRAME.pack(len(encoded), crc32(encoded)) + encoded


def _frames(content: memoryview) -> Iterator[memoryview]:
    """The values in frames.

    Raises:
        ValueError: a frame is damaged, or there are no more.
    """
    at = 0
    while at < len(content):
        length, checksum = _FRAME.unpack_from(content, at)
        at += _FRAME.size
        value = content[at : at + length]
        if len(value) != length or crc32(value) != checksum:
            raise ValueError("a damaged frame")
        yield value
        at += length
    raise ValueError("the file ends too early")


_PROTOCOLS: dict[Address | int, Protocol] = {int(protocol): protocol for protocol in Protocol}
_PROTOCOL_AT = {
    name: kind.key.index(Field.PROTOCOL) for name, kind in SETS.items() if Field.PROTOCOL in kind.key
}


def _with_protocols(part: Part) -> Part:
    """A part whose elements have protocols again: in the file they are numbers among other numbers."""
    return msgspec.structs.replace(part, elements=tuple(map(_with_protocol, part.elements)))


def _with_protocol(element: Element) -> Element:
    at = _PROTOCOL_AT.get(element.set)
    if at is None:
        return element
    key, until = _typed(element.key, at), _typed(element.until, at) if element.until else ()
    return Element(element.set, key, element.verdict, element.data, element.comment, until)


def _typed(fields: tuple[Address | int, ...], at: int) -> tuple[Address | int, ...]:
    return (*fields[:at], _PROTOCOLS[fields[at]], *fields[at + 1 :])
