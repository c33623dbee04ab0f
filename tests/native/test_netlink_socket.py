"""The netlink socket against the generic netlink controller, which every kernel has."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from edgeproxy.kernel import netlink
from edgeproxy.kernel.ipvs import Ipvs
from edgeproxy.kernel.ipvs_socket import NoIpvsError
from edgeproxy.kernel.netlink import Flag, OverrunError, RefusedError
from edgeproxy.kernel.netlink_socket import NETLINK_GENERIC, NetlinkSocket

_CONTROLLER = 16
_GET_FAMILY = netlink.generic_header(3)


def _named(name: str) -> bytes:
    return _GET_FAMILY + netlink.string(2, name)


def test_a_request_and_its_answer() -> None:
    with NetlinkSocket(NETLINK_GENERIC) as socket:
        (sequence,) = socket.sequences()
        datagram = netlink.message(_CONTROLLER, Flag.REQUEST | Flag.ACK, sequence, _named("nlctrl"))
        (reply,) = socket.request(datagram, sequence, "look up")
        assert netlink.number(netlink.attributes(reply.payload, 4)[1]) == _CONTROLLER


def test_a_refusal_is_an_error_with_its_number() -> None:
    with NetlinkSocket(NETLINK_GENERIC) as socket:
        (sequence,) = socket.sequences()
        datagram = netlink.message(_CONTROLLER, Flag.REQUEST | Flag.ACK, sequence, _named("no-such-family"))
        with pytest.raises(RefusedError, match=r"look up: No such file or directory \(errno 2\)") as caught:
            socket.request(datagram, sequence, "look up")
        assert caught.value.errno == errno.ENOENT


def test_a_batch_goes_on_after_an_error() -> None:
    with NetlinkSocket(NETLINK_GENERIC) as socket:
        sequences = socket.sequences(3)
        names = ("no-such-family", "nlctrl", "nlctrl")
        flags = (Flag.REQUEST, Flag.REQUEST, Flag.REQUEST | Flag.ACK)
        datagram = b"".join(
            netlink.message(_CONTROLLER, flag, sequence, _named(name))
            for flag, sequence, name in zip(flags, sequences, names, strict=True)
        )
        replies = socket.exchange(datagram, (sequences[-1],))
        assert [(reply.sequence - sequences[0], netlink.answer(reply) is None) for reply in replies] == [
            (0, False),
            (1, True),
            (2, True),
            (2, False),
        ]


def test_a_lost_answer_is_told_and_leaves_the_socket_usable() -> None:
    with NetlinkSocket(NETLINK_GENERIC, buffer=4096) as socket:
        sequences = socket.sequences(20)
        datagram = b"".join(
            netlink.message(_CONTROLLER, Flag.REQUEST | Flag.ACK, sequence, _named("nope"))
            for sequence in sequences
        )
        with pytest.raises(OverrunError):
            socket.exchange(datagram, sequences)
        (sequence,) = socket.sequences()
        datagram = netlink.message(_CONTROLLER, Flag.REQUEST | Flag.ACK, sequence, _named("nlctrl"))
        assert len(socket.request(datagram, sequence, "look up")) == 1


def test_an_awaited_answer_that_never_comes_does_not_block() -> None:
    with NetlinkSocket(NETLINK_GENERIC) as socket:
        (sequence,) = socket.sequences()
        datagram = netlink.message(_CONTROLLER, Flag.REQUEST, sequence, _named("nlctrl"))
        with pytest.raises(OverrunError, match="1 netlink requests unanswered"):
            socket.exchange(datagram, (sequence,))


def test_nothing_queued_is_nothing_read() -> None:
    with NetlinkSocket(NETLINK_GENERIC) as socket:
        assert socket.receive() == []
        assert not socket.wait(0)
        assert socket.fileno() > 0


def test_sequences_start_anew_before_they_overflow() -> None:
    with NetlinkSocket(NETLINK_GENERIC) as socket:
        assert socket.sequences(3) == range(1, 4)
        assert socket.sequences() == range(4, 5)
        socket.sequences((1 << 32) - 100)
        assert socket.sequences(1000) == range(1, 1001)


@pytest.mark.skipif(Path("/proc/net/ip_vs").exists(), reason="this kernel has IPVS")
def test_a_kernel_without_ipvs_is_named() -> None:
    with pytest.raises(NoIpvsError, match="modprobe ip_vs"):
        Ipvs()
