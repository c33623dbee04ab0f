"""What a fingerprint is blind to and what it sees, on hand-made dumps."""

from __future__ import annotations

import msgspec

from edgeproxy.kernel.netlink import attribute, be32, be64, nested, string
from edgeproxy.kernel.nft_frame import Parts, fingerprint, list_items, set_entry, table_of

HEAD = b"\1\0\0\0"


def _lookup(set_name: str) -> bytes:
    return nested(1, string(1, "lookup"), nested(2, string(1, set_name), be32(2, 1)))


def _counter(packets: int) -> bytes:
    return nested(1, string(1, "counter"), nested(2, be64(1, packets * 60), be64(2, packets)))


def _rule(chain: str, handle: int, *expressions: bytes) -> bytes:
    position = be64(6, handle - 1)
    return (
        HEAD
        + string(1, "edgeproxy")
        + string(2, chain)
        + be64(3, handle)
        + nested(4, *expressions)
        + position
    )


def _set(name: str, flags: int, handle: int) -> bytes:
    return HEAD + string(1, "edgeproxy") + string(2, name) + be32(3, flags) + be32(4, 7) + be64(16, handle)


def _chain(name: str, handle: int, use: int) -> bytes:
    return HEAD + string(1, "edgeproxy") + be64(2, handle) + string(3, name) + be32(6, use)


def _key(value: bytes, *more: bytes) -> bytes:
    return nested(1, attribute(1, value)) + b"".join(more)


def _parts(
    anonymous: str = "__set0", base: int = 10, packets: int = 0, values: tuple[bytes, ...] = (b"aaaa",)
) -> Parts:
    return Parts(
        HEAD + string(1, "edgeproxy") + be32(3, base) + be64(4, base),
        (_chain("one", base + 1, base), _chain("two", base + 2, base)),
        (
            _rule("one", base + 3, _lookup(anonymous), _counter(packets)),
            _rule("one", base + 4, _lookup("frontends4")),
            _rule("two", base + 5, _lookup("constant4")),
        ),
        tuple(
            map(
                set_entry,
                (_set(anonymous, 0x3, base + 6), _set("frontends4", 0x8, base), _set("constant4", 4, base)),
            )
        ),
        {
            anonymous: (_key(b"bbbb"), *map(_key, values)),
            "constant4": (_key(b"cccc"), _key(b"dddd", be32(3, 1))),
        },
    )


BASE = fingerprint([_parts()])


def test_counts_and_numbers_of_the_kernel_do_not_matter() -> None:
    assert fingerprint([_parts("__set17", 90, 12)]) == BASE


def test_order_of_elements_and_the_opening_mark_do_not_matter() -> None:
    parts = _parts()
    mark = _key(b"\0\0\0\0", be32(3, 1))
    elements = {name: (*reversed(listed), mark) for name, listed in parts.elements.items()}
    assert fingerprint([msgspec.structs.replace(parts, elements=elements)]) == BASE


def test_content_of_sets_chains_and_rules_does() -> None:
    parts = _parts()
    rules, sets = parts.rules, parts.sets
    zero = _key(b"\0\0\0\0")
    others = [
        _parts(values=(b"aaab",)),
        _parts(values=(b"aaaa", b"aaab")),
        msgspec.structs.replace(parts, rules=(rules[1], rules[0], rules[2])),
        msgspec.structs.replace(parts, rules=rules[:2]),
        msgspec.structs.replace(parts, chains=parts.chains[:1]),
        msgspec.structs.replace(parts, sets=sets[:2]),
        msgspec.structs.replace(parts, elements={**parts.elements, "constant4": (_key(b"cccc"),)}),
        msgspec.structs.replace(
            parts, elements={**parts.elements, "constant4": (*parts.elements["constant4"], zero)}
        ),
    ]
    seen = [fingerprint([other]) for other in others]
    assert len({BASE, *seen}) == len(others) + 1


def test_order_of_chains_in_the_dump_does_not_matter() -> None:
    parts = _parts()
    turned = msgspec.structs.replace(
        parts, chains=parts.chains[::-1], sets=parts.sets[::-1], rules=(parts.rules[2], *parts.rules[:2])
    )
    assert fingerprint([turned]) == BASE


def test_which_sets_elements_count() -> None:
    assert set_entry(_set("__set3", 0x3, 1)).constant
    assert set_entry(_set("constant4", 0x4, 1)).constant
    assert not set_entry(_set("sources4", 0x4, 1)).constant
    assert not set_entry(_set("frontends4", 0x8, 1)).constant


def test_reading_of_parts() -> None:
    assert table_of(_chain("one", 1, 1)) == "edgeproxy"
    assert list(list_items(HEAD + string(1, "t") + nested(3, nested(1, b"abcd"), nested(1, b"efgh")))) == [
        b"abcd",
        b"efgh",
    ]
