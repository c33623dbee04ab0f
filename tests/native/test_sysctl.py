"""Settings of a private network namespace."""

from __future__ import annotations

import pytest

from edgeproxy.kernel import sysctl
from edgeproxy.kernel.sysctl import Outcome, Sysctl
from tests.native.conftest import sh


@pytest.mark.usefixtures("netns")
def test_read_compare_write() -> None:
    wanted = [Sysctl("net.ipv4.ip_forward", "1"), Sysctl("net.ipv4.ip_local_port_range", "2000 3000")]
    sysctl.apply([Sysctl("net.ipv4.ip_forward", "0")])
    checked = sysctl.check(wanted)
    assert [outcome.good for outcome in checked] == [False, False]
    assert sysctl.read("net.ipv4.ip_forward") == "0"
    assert [outcome.written for outcome in sysctl.apply(wanted)] == [True, True]
    assert [(outcome.written, outcome.good) for outcome in sysctl.apply(wanted)] == [
        (False, True),
        (False, True),
    ]
    assert sh("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    assert sh("sysctl", "-n", "net.ipv4.ip_local_port_range").split() == ["2000", "3000"]


@pytest.mark.usefixtures("netns")
def test_interfaces_with_dots() -> None:
    sh("ip", "link", "add", "eth0.100", "type", "veth", "peer", "name", "peer0")
    for name in ("net/ipv4/conf/eth0.100/rp_filter", "net.ipv4.conf.eth0/100.rp_filter"):
        for value in ("2", "1"):
            (outcome,) = sysctl.apply([Sysctl(name, value)])
            assert outcome.good
            assert sysctl.read("net/ipv4/conf/eth0.100/rp_filter") == value


@pytest.mark.usefixtures("netns")
def test_what_cannot_be() -> None:
    absent, refused = sysctl.apply(
        [Sysctl("net.ipv4.no.such_thing", "1"), Sysctl("net.ipv4.ip_forward", "many")]
    )
    assert absent == Outcome("net.ipv4.no.such_thing", "1", None, error=absent.error)
    assert "no such setting" in str(absent)
    assert "/proc/sys/net/ipv4/no/such_thing is absent, wanted 1" in str(absent)
    assert not refused.good
    assert not refused.written
    assert "cannot be written" in refused.error
