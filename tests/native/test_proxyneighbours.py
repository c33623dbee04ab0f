"""Who answers neighbour requests for an IPv6 address that is served but not owned, seen from another host."""

from __future__ import annotations

import pytest

from edgeproxy.address import parse
from edgeproxy.kernel.routes import Routes
from edgeproxy.proxyneighbours import ProxyNeighbours
from tests.lab.echo import Answer, EchoServers, ask_udp
from tests.lab.namespace import Host
from tests.lab.topology import Kind, Topology
from tests.lab.wait import until

EXTERNAL = "fd00:ee::1"


def neighbour(client: Host) -> str:
    """What a client has found out about the address, "" while it still asks."""
    found = client.run(["ip", "-6", "neigh", "show", EXTERNAL]).stdout
    return found if "lladdr" in found or "FAILED" in found else ""


@pytest.mark.parametrize("answer", [False, True])
def test_only_where_that_is_configured(*, answer: bool) -> None:
    with Topology(hosts=1, backends=0, kind=Kind.FLAT) as net, EchoServers() as servers:
        host, client = net.hosts[0], net.client
        host.ip(f"route add local {EXTERNAL}/128 dev lo table local")
        servers.listen(host, udp=[53])
        client.ip("route add fd00:ee::/64 dev eth0")
        assert isinstance(ask_udp(client, host.address6, 53), Answer)
        with host.inside():
            neighbours = ProxyNeighbours(Routes())
            neighbours.ensure([parse(EXTERNAL), parse("203.0.113.1")], answer=answer)
            assert neighbours.findings() == ()
            assert {proxy.interface for proxy in Routes().proxies()} == (
                {"eth0", "store"} if answer else set()
            )
        ask_udp(client, EXTERNAL, 53, timeout=0.1)
        settled = until(lambda: neighbour(client), 20, "the client knows who answers for the address")
        assert ("lladdr" in settled) == answer, settled
        with host.inside():
            neighbours.ensure([parse(EXTERNAL)], answer=False)
            assert Routes().proxies() == []
