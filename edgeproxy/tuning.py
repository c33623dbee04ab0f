"""Kernel settings the data plane needs: written where permitted, otherwise a finding names file and value.

What each is for: docs/operations.md. Under the hardened unit `/proc/sys` is read-only and
`/usr/lib/sysctl.d/edgeproxy.conf` has set them before the daemon starts.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

from edgeproxy.kernel import sysctl
from edgeproxy.kernel.sysctl import Outcome, Sysctl
from edgeproxy.model import Finding, Reason

ALWAYS = (
    # Without it IPVS flows have no conntrack entry, and nothing can masquerade them.
    Sysctl("net.ipv4.vs.conntrack", "1"),
    # A flow whose real server is gone dies with its next packet instead of being dropped for ever.
    Sysctl("net.ipv4.vs.expire_nodest_conn", "1"),
    # Clients leave a real server of weight 0 although they are persistent (kubernetes#71809).
    Sysctl("net.ipv4.vs.expire_quiescent_template", "1"),
    Sysctl("net.ipv4.ip_forward", "1"),
)
# A host that forwards IPv6 ignores router advertisements unless accept_ra is 2: only where it is needed.
IPV6 = (Sysctl("net.ipv6.conf.all.forwarding", "1"),)
# Mode 1 costs a second per reused source port on old kernels (kubernetes#81775); fixed in 5.9.
REUSE = Sysctl("net.ipv4.vs.conn_reuse_mode", "0")


def wanted(release: str, *, ipv6: bool) -> tuple[Sysctl, ...]:
    """The settings for a kernel release such as `6.1.0-33-cloud-amd64`."""
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in f"{release}.0".split(".")[:2])
    old = (4, 1) <= (major, minor) < (5, 9)
    return ALWAYS + (IPV6 if ipv6 else ()) + ((REUSE,) if old else ())


class Tuning:
    """The settings of this network namespace."""

    def __init__(self, apply: Callable[[Sequence[Sysctl]], tuple[Outcome, ...]] = sysctl.apply) -> None:
        self._apply = apply
        self._findings: tuple[Finding, ...] = ()
        self.ipv6 = False

    def apply(self, *, ipv6: bool) -> None:
        """Check all settings, write those that differ. ipv6: whether IPv6 services exist."""
        self.ipv6 = ipv6
        outcomes = self._apply(wanted(platform.release(), ipv6=ipv6))
        self._findings = tuple(
            Finding("", 0, outcome.name, Reason.SYSCTL, str(outcome))
            for outcome in outcomes
            if not outcome.good
        )

    def findings(self) -> tuple[Finding, ...]:
        """The settings that are not as they should be."""
        return self._findings
