"""What the sets and maps of our nft tables hold: the type of every set whose elements come from records."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from edgeproxy.address import Address, text
from edgeproxy.model import Element, Protocol, SetName

TABLE = "edgeproxy"
COMMENT_LIMIT = 128
"""Longest comment of an element, in bytes: nft shows no longer one, and some sets lose it without an error."""


class Family(enum.IntEnum):
    """NFPROTO_*: the family of a table."""

    UNSPECIFIED = 0
    INET = 1
    ARP = 3

    @property
    def word(self) -> str:
        """As nft writes it: `inet`."""
        return self.name.lower()


class Field(enum.Enum):
    """What a field of a key or of data can be: its form in `struct` notation."""

    IPV4 = "4s"
    IPV6 = "16s"
    PROTOCOL = "B3x"
    PORT = "H2x"
    VERDICT = ""


class SetType(msgspec.Struct, frozen=True):
    """How a set of our tables is typed.

    key: the fields of the key in order; data: what a map gives, None for a set.
    ranges: every element is a range per field and has a closing key.
    family: of the table the set is in.
    """

    key: tuple[Field, ...]
    data: Field | None = None
    ranges: bool = False
    family: Family = Family.INET


def _both(name: str, *key: Field, data: Field | None = None, ranges: bool = False) -> dict[SetName, SetType]:
    """The same set for both families, `Field.IPV4` standing for the family's address."""
    six = tuple(Field.IPV6 if field is Field.IPV4 else field for field in key)
    data6 = Field.IPV6 if data is Field.IPV4 else data
    return {
        SetName(f"{name}4"): SetType(key, data, ranges),
        SetName(f"{name}6"): SetType(six, data6, ranges),
    }


_FRONTEND = (Field.IPV4, Field.PROTOCOL, Field.PORT)

SETS: Mapping[SetName, SetType] = {
    **_both("frontends", *_FRONTEND, data=Field.VERDICT),
    **_both("addresses", Field.IPV4),
    **_both("node_ports", Field.PROTOCOL, Field.PORT, data=Field.VERDICT),
    **_both("hairpin", Field.IPV4, Field.IPV4),
    **_both("detours", *_FRONTEND, data=Field.IPV4),
    **_both("sources", *_FRONTEND, Field.IPV4, ranges=True),
    **_both("drains", *_FRONTEND, Field.IPV4, Field.PORT),
    SetName.UNANSWERED: SetType((Field.IPV4,), family=Family.ARP),
}
"""Every set whose elements come from records."""


def place(name: SetName) -> str:
    """A set and its table, for people: `set drains4 of table inet edgeproxy`."""
    return f"set {name} of table {SETS[name].family.word} {TABLE}"


def describe(element: Element) -> str:
    """An element as nft writes it: `10.96.0.10 . tcp . 8000 : goto cluster_ip4`."""
    shown = " . ".join(_field_text(part) for part in element.key)
    if element.until and element.until != element.key:
        shown += " to " + " . ".join(_field_text(part) for part in element.until)
    if element.verdict:
        shown += f" : goto {element.verdict}"
    if element.data:
        shown += f" : {text(element.data)}"
    return shown + (f" ({element.comment})" if element.comment else "")


def _field_text(part: Address | Protocol | int) -> str:
    if isinstance(part, bytes):
        return text(part)
    return part.name.lower() if isinstance(part, Protocol) else str(part)


def comment(service: str) -> str:
    """The comment that names a service: its name, cut to what an element can carry."""
    return service.encode()[:COMMENT_LIMIT].decode(errors="ignore")
