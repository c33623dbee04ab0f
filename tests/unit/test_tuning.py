"""Which kernel settings, on which kernel, and what is said when they are not so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgeproxy.kernel.sysctl import Outcome, Sysctl
from edgeproxy.model import Reason
from edgeproxy.tuning import ALWAYS, IPV6, REUSE, Tuning, wanted


@pytest.mark.parametrize(
    ("release", "reuse"),
    [
        ("6.1.0-33-cloud-amd64", False),
        ("5.10.0-28-amd64", False),
        ("5.9.0", False),
        ("5.8.18-generic", True),
        ("4.19.0-25-amd64", True),
        ("4.1", True),
        ("4.0.9", False),
        ("7-rc1", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("ipv6", [False, True])
def test_by_kernel_and_family(release: str, reuse: bool, ipv6: bool) -> None:
    found = wanted(release, ipv6=ipv6)
    assert set(ALWAYS) <= set(found)
    assert (REUSE in found) == reuse
    assert (IPV6[0] in found) == ipv6


def test_what_is_not_so_is_a_finding_until_it_is() -> None:
    errors = iter(["read-only file system", ""])

    def apply(settings: Sequence[Sysctl]) -> tuple[Outcome, ...]:
        error = next(errors)
        return (
            Outcome("net.ipv4.vs.conntrack", "1", "0", error=error),
            Outcome("net.ipv4.ip_forward", "1", "1"),
        )

    tuning = Tuning(apply)
    assert tuning.findings() == ()
    tuning.apply(ipv6=True)
    assert tuning.ipv6
    (finding,) = tuning.findings()
    assert (finding.path, finding.reason) == ("net.ipv4.vs.conntrack", Reason.SYSCTL)
    assert "/proc/sys/net/ipv4/vs/conntrack is 0, wanted 1: read-only file system" in finding.message
    tuning.apply(ipv6=False)
    assert tuning.findings() == ()
    assert not tuning.ipv6
