"""The generic netlink family `IPVS`: many requests in a datagram, their answers sorted out.

The number of the family is given out when the module is loaded and changes when it is loaded
again; a request under an old number is refused with ENOENT, which is also what IPVS says of an
unknown scheduler or destination. So on ENOENT the number is looked up, and if it is another one,
everything is asked again. Looking it up loads the module where that is permitted.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from edgeproxy.kernel import netlink
from edgeproxy.kernel.ipvs_codec import FAMILY_NAME
from edgeproxy.kernel.netlink import Answer, Flag, NetlinkError, OverrunError, RefusedError
from edgeproxy.kernel.netlink_socket import NETLINK_GENERIC, NetlinkSocket, NetlinkUser

T = TypeVar("T")
Fast = Callable[[bytes, int, int], list[T] | None]

_CONTROLLER = 16  # GENL_ID_CTRL
_GET_FAMILY = 3  # CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2  # CTRL_ATTR_*

LARGEST_BATCH = 1024
"""Requests in a datagram: measured, 256 cost 15 % more, 4096 save 10 % and take four times as long."""

# What one refusal occupies in the receive buffer and one message in the send buffer, rounded up.
_REFUSAL_BYTES = 2048
_MESSAGE_BYTES = 256
_TOO_MUCH = (errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM)


class NoIpvsError(NetlinkError):
    """The kernel has no IPVS: the module `ip_vs` is not loaded, or this kernel has none."""

    def __init__(self) -> None:
        super().__init__(
            "this kernel has no IPVS: run 'modprobe ip_vs' (and list ip_vs in /etc/modules-load.d/ to keep it)"
        )


class Requests(msgspec.Struct, frozen=True):
    """Requests as one datagram, ready to be sent to a family; the sequence numbers are those of its messages."""

    family: int
    payloads: Sequence[bytes]
    sequences: range
    datagram: bytes


class IpvsSocket(NetlinkUser):
    """IPVS of the network namespace in which this is made.

    Raises:
        NoIpvsError: the kernel has no IPVS.
    """

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_GENERIC)
        try:
            self._family = self._resolve()
        except BaseException:
            self._netlink.close()
            raise
        room = min(
            self._netlink.receive_buffer // 2 // _REFUSAL_BYTES,
            self._netlink.send_buffer // 2 // _MESSAGE_BYTES,
        )
        self.largest_batch = max(1, min(LARGEST_BATCH, room))

    @property
    def family(self) -> int:
        """The number of the family: the type of its messages."""
        return self._family

    def prepare(self, payloads: Sequence[bytes]) -> Requests:
        """Requests for :meth:`tell`, which may be under way in another thread."""
        sequences = self._netlink.sequences(len(payloads))
        datagram = netlink.batch(self._family, sequences, payloads)
        return Requests(self._family, payloads, sequences, datagram)

    def tell(self, requests: Requests) -> list[tuple[int, Answer]]:
        """Make requests in order; positions and answers of those that were refused.

        Where answers are lost because the receive buffer is full, all are made again in halves: only
        for requests that may be repeated. What the first time has made is then refused as existing.

        Raises:
            OverrunError, OSError: not even a single request gets through.
            NoIpvsError: the module was unloaded meanwhile.
        """
        payloads = requests.payloads
        if requests.family != self._family:
            # The number was looked up anew since.
            requests = self.prepare(payloads)
        try:
            refused = self._tell_once(requests)
        except (OverrunError, OSError) as error:
            if len(payloads) == 1 or (isinstance(error, OSError) and error.errno not in _TOO_MUCH):
                raise
            half = len(payloads) // 2
            first = self.tell(self.prepare(payloads[:half]))
            return first + [(half + at, said) for at, said in self.tell(self.prepare(payloads[half:]))]
        if any(said.errno == errno.ENOENT for _, said in refused) and self._renewed():
            return self._tell_once(self.prepare(payloads))
        return refused

    def _tell_once(self, requests: Requests) -> list[tuple[int, Answer]]:
        sequences = requests.sequences
        refused = []
        for reply in self._netlink.exchange(requests.datagram, sequences[-1:]):
            said = netlink.answer(reply)
            if said is not None and said.errno and reply.sequence in sequences:
                refused.append((reply.sequence - sequences[0], said))
        return refused

    def ask(self, payloads: Sequence[bytes]) -> list[tuple[bytes, Answer]]:
        """Many single reads in one datagram: per request the payload of its reply, b"" if refused, and
        the final answer."""
        sequences = self._netlink.sequences(len(payloads))
        flags = Flag.REQUEST | Flag.ACK
        datagram = b"".join(
            netlink.message(self._family, flags, sequence, payload)
            for sequence, payload in zip(sequences, payloads, strict=True)
        )
        replies = [b""] * len(payloads)
        answers = [Answer(0)] * len(payloads)
        for reply in self._netlink.exchange(datagram, sequences):
            if reply.sequence not in sequences:
                continue
            said = netlink.answer(reply)
            if said is None:
                replies[reply.sequence - sequences[0]] = reply.payload
            else:
                answers[reply.sequence - sequences[0]] = said
        if any(said.errno == errno.ENOENT for said in answers) and self._renewed():
            return self.ask(payloads)
        return list(zip(replies, answers, strict=True))

    def one(self, payload: bytes, doing: str) -> bytes:
        """One request that must succeed: the payload of its reply, b"" if it has none.

        Raises:
            RefusedError: the kernel answered with an error.
        """
        ((reply, said),) = self.ask([payload])
        if said.errno:
            raise RefusedError(doing, said)
        return reply

    def dump(
        self, payload: bytes, doing: str, decode: Callable[[bytes], T], fast: Fast[T] | None = None
    ) -> list[T]:
        """Ask for a list.

        decode: the payload of one message to a value. fast: a whole datagram to its values, or None
        if it does not know how; called with the numbers of family and request.

        Raises:
            RefusedError: the kernel answered with an error.
            OverrunError: it did not finish.
        """
        (sequence,) = self._netlink.sequences()
        self._netlink.send(netlink.message(self._family, Flag.REQUEST | Flag.DUMP, sequence, payload))
        found: list[T] = []
        while datagram := self._netlink.read():
            values = fast(datagram, self._family, sequence) if fast else None
            if values is not None:
                found += values
                continue
            for reply in netlink.messages(datagram):
                if reply.sequence != sequence:
                    continue
                said = netlink.answer(reply)
                if said is None:
                    found.append(decode(reply.payload))
                elif said.errno == errno.ENOENT and self._renewed():
                    return self.dump(payload, doing, decode, fast)
                elif said.errno:
                    raise RefusedError(doing, said)
                else:
                    return found
        raise OverrunError(f"{doing}: the kernel did not finish")

    def _renewed(self) -> bool:
        """Whether the family has another number now."""
        before, self._family = self._family, self._resolve()
        return self._family != before

    def _resolve(self) -> int:
        (sequence,) = self._netlink.sequences()
        payload = netlink.generic_header(_GET_FAMILY) + netlink.string(_FAMILY_NAME, FAMILY_NAME)
        request = netlink.message(_CONTROLLER, Flag.REQUEST | Flag.ACK, sequence, payload)
        try:
            replies = self._netlink.request(
                request, sequence, f"look up generic netlink family {FAMILY_NAME}"
            )
        except RefusedError as error:
            if error.errno == errno.ENOENT:
                raise NoIpvsError from None
            raise
        fields = netlink.attributes(replies[0].payload, netlink.GENERIC_HEADER_LENGTH)
        return netlink.number(fields[_FAMILY_ID])
