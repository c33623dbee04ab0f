"""Single values of the configuration file: TOML value in, parsed value out.

Every function takes what the TOML reader made of a key and returns the parsed value, or
raises :class:`Unexpected` that says what was expected. Pure; knows no key names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from edgeproxy.address import Address, Network, parse, parse_network
from edgeproxy.settings import ETCD_PORT, Listen, PortRange

E = TypeVar("E", bound=str)

FIRST_UNPRIVILEGED_PORT = 1024
LAST_PORT = 65535
LAST_MARK_BIT = 31

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+)s)?(?:(\d+)ms)?", re.ASCII)
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*",
    re.IGNORECASE | re.ASCII,
)
# IP_VS_SCHEDNAME_MAXLEN is 16 with the terminating zero.
_SCHEDULER = re.compile(r"[a-z0-9][a-z0-9_-]{0,14}", re.ASCII)


class Unexpected(ValueError):
    """A value is not what its key takes; the text says what is expected."""


def string(value: object) -> str:
    """A string without white space around it."""
    if not isinstance(value, str):
        raise Unexpected("a string in quotes")
    return value.strip()


def name(value: object) -> str:
    """A string that is not empty."""
    found = string(value)
    if not found:
        raise Unexpected("a name that is not empty (leave the key out for the default)")
    return found


def node_name(value: object) -> str:
    """A node's name, trimmed and lower-cased as records' `nodeName` is."""
    return name(value).lower()


def boolean(value: object) -> bool:
    """`true` or `false`."""
    if not isinstance(value, bool):
        raise Unexpected("true or false")
    return value


def mark_bit(value: object) -> int:
    """The number of a bit in the packet mark."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LAST_MARK_BIT:
        raise Unexpected(f"the number of a bit, 0 to {LAST_MARK_BIT}")
    return value


def duration(value: object) -> float:
    """Seconds from `90s`, `1m30s`, `2h`, `250ms`, `0s`."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if not match or not match.group():
        raise Unexpected('a duration such as "90s", "1m30s" or "0s" (units h, m, s, ms)')
    numbers = zip(match.groups(), _UNITS.values(), strict=True)
    return sum(int(number) * seconds for number, seconds in numbers if number)


def positive_duration(value: object) -> float:
    """Seconds, more than none."""
    seconds = duration(value)
    if seconds <= 0:
        raise Unexpected("a duration longer than 0s")
    return seconds


def kernel_timeout(value: object) -> int | None:
    """Whole seconds, or None for `""` and `0s`: the kernel's own."""
    seconds = duration(value) if value != "" else 0.0
    if seconds != int(seconds):
        raise Unexpected('whole seconds such as "900s", or "" for the kernel\'s own')
    return int(seconds) or None


def network(value: object) -> Network:
    """A CIDR."""
    try:
        return parse_network(string(value))
    except ValueError:
        raise Unexpected('a CIDR such as "10.96.0.0/16" or "fd00:96::/112"') from None


def address(value: object) -> Address:
    """An IP address."""
    try:
        return parse(string(value))
    except ValueError:
        raise Unexpected('an IP address such as "192.0.2.10" or "fd00::10"') from None


def network_or_primary(value: object) -> Network | None:
    """A CIDR, or None for the keyword `primary`."""
    if value == "primary":
        return None
    try:
        return network(value)
    except Unexpected:
        raise Unexpected('a CIDR such as "192.0.2.0/24", or "primary"') from None


def port_number(digits: str) -> int | None:
    """1 to 65535, or None."""
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
        return None
    return int(digits) if 1 <= int(digits) <= LAST_PORT else None


def port_range(value: object) -> PortRange:
    """`first-last`, both included, above the privileged ports."""
    first, _, last = value.partition("-") if isinstance(value, str) else ("", "", "")
    low, high = port_number(first.strip()), port_number(last.strip())
    if low is None or high is None or not FIRST_UNPRIVILEGED_PORT <= low <= high:
        raise Unexpected(
            f'two port numbers "FIRST-LAST" with {FIRST_UNPRIVILEGED_PORT} <= FIRST <= LAST <= {LAST_PORT}'
        )
    return PortRange(low, high)


def listen(value: object) -> Listen | None:
    """`host:port`, `[IPv6]:port`, or None for `""`."""
    if value == "":
        return None
    text = value.strip() if isinstance(value, str) else ""
    host, colon, digits = text.rpartition(":")
    port = port_number(digits)
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or port is None or not (_is_host(host) and (":" in host) == bracketed):
        raise Unexpected('HOST:PORT such as "0.0.0.0:10256" or "[::]:10256", or "" for off')
    return Listen(host, port)


def scheduler(value: object) -> str:
    """The name of an IPVS scheduler; whether the kernel has it shows only there."""
    if not isinstance(value, str) or not _SCHEDULER.fullmatch(value):
        raise Unexpected('the name of an IPVS scheduler such as "wrr", "rr", "lc" or "mh"')
    return value


def choice(kind: Callable[[str], E], names: tuple[str, ...]) -> Callable[[object], E]:
    """A reader of one of `names`."""

    def read(value: object) -> E:
        if not isinstance(value, str) or value not in names:
            raise Unexpected(" or ".join(f'"{name}"' for name in names))
        return kind(value)

    return read


def absolute_path(value: object) -> Path:
    """A path from the root: the daemon's working directory means nothing to whoever wrote the file."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise Unexpected("an absolute path such as /etc/edgeproxy/ca.pem")
    return Path(value)


def optional_path(value: object) -> Path | None:
    """An absolute path, or None for `""`."""
    return None if value == "" else absolute_path(value)


def optional_string(value: object) -> str | None:
    """A string, or None for `""`."""
    return string(value) or None


def prefix(value: object) -> str:
    """A key prefix, normalised to end in one slash."""
    found = string(value).rstrip("/")
    if not found or "//" in found:
        raise Unexpected('a key prefix such as "/services/", not empty and without "//"')
    return found + "/"


def endpoint(value: object) -> str:
    """An etcd endpoint URL, normalised to scheme, host and port (default 2379)."""
    expected = 'a URL such as "http://127.0.0.1:2379" or "https://etcd.example:2379"'
    if not isinstance(value, str) or any(c.isspace() for c in value):
        raise Unexpected(expected)
    try:
        url = urlsplit(value)
        port, host = url.port, url.hostname
    except ValueError:
        raise Unexpected(expected) from None
    if url.scheme not in ("http", "https") or not host or port == 0 or not _is_host(host):
        raise Unexpected(expected)
    if url.path.strip("/") or url.query or url.fragment or "@" in url.netloc:
        raise Unexpected(f"{expected}, with nothing but scheme, host and port")
    return f"{url.scheme}://{Listen(host, port or ETCD_PORT)}"


def _is_host(text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        # All digits and dots would be an address with a typo, such as 10.0.0.256.
        return bool(_HOST_NAME.fullmatch(text)) and not text.replace(".", "").isdigit()
    return True
