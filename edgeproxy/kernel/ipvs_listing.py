"""The text of /proc/net/ip_vs: bytes in, virtual servers with their destinations out.

Theory of operation. The kernel prints a line per virtual server, and below it a line per
destination that starts with two spaces (`ip_vs_info_seq_show` in net/netfilter/ipvs/ip_vs_ctl.c,
the same in Linux 4.x to 6.x):

    TCP  0A600001:1F90 wrr  persistent 2700000 FFFFFFFF
      -> 0A010102:0050      Masq    1      0          0
    UDP  [fd00:0096:0000:0000:0000:0000:0000:0001]:0035 rr
    FWM  00000007 sh

Addresses and ports are hexadecimal in network order, whatever the host's; weight, active and
inactive connections are decimal, and so is the time of persistence, in jiffies. What the lines
cannot tell: of a destination its thresholds, the details of a tunnel and its persistence templates,
of a virtual server the flags of its scheduler and its persistence engine. And `Masq` is also printed
for forwarding methods no tool sets (ip_vs_fwd_name).

So only virtual servers with nothing but masqueraded destinations of their own family, or with
none, are told here. All others are left out, and so is whatever is not exactly as above: a reader
asks netlink for what it misses. That makes one regular expression enough, which takes a virtual
server as a whole; what it has matched needs no further check.
"""

from __future__ import annotations

import re
import struct
from binascii import unhexlify

from edgeproxy.address import Address
from edgeproxy.kernel.ipvs_entries import Weights
from edgeproxy.model import Frontend, Protocol

Listed = tuple[Frontend, Weights]
"""A virtual server and its destinations."""

_NUMBER = "[0-9]{1,10}"
_SOCKET_4 = "[0-9A-F]{8}:[0-9A-F]{4}"
# Written out eight times: a repeated group costs twice the time.
_SOCKET_6 = r"\[" + ":".join(["[0-9a-f]{4}"] * 8) + r"\]:[0-9A-F]{4}"


def _family(socket: str) -> str:
    """What may follow a protocol: a socket, the rest of its line, and destinations of that family."""
    # Repeated with `*`, not `*+`: Python 3.11.2 of Debian 12 captures wrong lines with that (gh-106052).
    destination = rf"  -> {socket}      Masq +{_NUMBER} +{_NUMBER} +{_NUMBER} *\n"
    return rf"({socket}) [^\n]*\n((?:{destination})*)"


_VIRTUAL_SERVER = re.compile(
    rf"^(TCP|UDP|SCTP)  (?:{_family(_SOCKET_4)}|{_family(_SOCKET_6)})(?! )".encode(), re.MULTILINE
)
_PROTOCOLS = {protocol.name.encode(): protocol for protocol in Protocol}
_PUNCTUATION = b"[:]"
_PACKED_4, _PACKED_6 = "4sH", "16sH"
_COLUMNS = 6  # `->`, socket, forwarding method, weight, active, inactive


class Listing:
    """Takes the text in pieces, cut anywhere, and tells of each virtual server once it is complete.

    It never raises: what it does not understand is left out. After a piece is lost, none of the rest may be fed.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[Listed]:
        """The virtual servers that are complete with this piece."""
        text = self._rest + piece
        end = _last_server(text, max(0, len(self._rest) - 1))
        self._rest = text[end:]
        return _virtual_servers(text[:end])

    def end(self) -> list[Listed]:
        """The last virtual server; the text was read to its end."""
        text, self._rest = self._rest, b""
        return _virtual_servers(text)


def _last_server(text: bytes, start: int) -> int:
    """Where the last line begins that is none of a destination, looked for after `start`; 0 if there is none."""
    at = len(text) - 1
    while (at := text.rfind(b"\n", start, at)) >= 0:
        if text[at + 1 : at + 2] != b" ":
            return at + 1
    return 0


def _virtual_servers(text: bytes) -> list[Listed]:
    found = []
    for protocol, socket_4, lines_4, socket_6, lines_6 in _VIRTUAL_SERVER.findall(text):
        packed, lines = (_PACKED_4, lines_4) if socket_4 else (_PACKED_6, lines_6)
        words = lines.split()
        # Column by column, so that no loop is Python's.
        (address, *addresses), (port, *ports) = _sockets([socket_4 or socket_6, *words[1::_COLUMNS]], packed)
        weights = dict(zip(zip(addresses, ports, strict=True), map(int, words[3::_COLUMNS]), strict=True))
        found.append((Frontend(address, _PROTOCOLS[protocol], port), weights))
    return found


def _sockets(words: list[bytes], packed: str) -> tuple[tuple[Address, ...], tuple[int, ...]]:
    """Addresses and ports."""
    digits = b"".join(words).translate(None, _PUNCTUATION)
    fields = struct.unpack(">" + packed * len(words), unhexlify(digits))
    return fields[::2], fields[1::2]
