"""Reads what `surroundings` works with: addresses, routes, name servers."""

from __future__ import annotations

from pathlib import Path

from edgeproxy.address import Address, parse
from edgeproxy.kernel.routes import Routes
from edgeproxy.surroundings import HostFacts

RESOLV_CONF = Path("/etc/resolv.conf")


def read(routes: Routes) -> HostFacts:
    """The facts of this network namespace, now.

    Raises:
        RouteError: the kernel refused.
    """
    return HostFacts(
        addresses=tuple(routes.addresses()),
        routes=tuple(routes.routes()),
        name_servers=name_servers(),
        loopback_up=routes.loopback_up(),
    )


def name_servers(path: Path = RESOLV_CONF) -> tuple[Address, ...]:
    """The name servers of a resolv.conf; none if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(parse(words[1].partition("%")[0]))
            except ValueError:
                continue
    return tuple(found)
