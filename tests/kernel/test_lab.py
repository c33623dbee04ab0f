"""The lab itself: what the other tests of this directory stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab.echo import Answer, Conversation, EchoServers, Failure, ask_sctp, ask_tcp, ask_udp, converse
from tests.lab.etcd import Etcd
from tests.lab.topology import Kind, Topology
from tests.lab.wait import TooLate, until

Ask = Callable[..., Answer | Failure]
MASQUERADE = "table inet lab { chain lab { type nat hook postrouting priority 100; masquerade; }; }"
VIP4, VIP6 = "10.96.0.10", "fd00:96::10"


@pytest.fixture(scope="module", params=list(Kind), ids=lambda kind: kind.value)
def net(request: pytest.FixtureRequest) -> Iterator[Topology]:
    with Topology(hosts=2, backends=2, kind=request.param) as topology:
        yield topology


@pytest.fixture(scope="module")
def echoes(net: Topology) -> Iterator[EchoServers]:
    with EchoServers() as servers:
        for backend in net.backends:
            servers.listen(backend, tcp=[80], udp=[53], sctp=[99])
        yield servers


@pytest.mark.usefixtures("echoes")
@pytest.mark.parametrize(("ask", "port"), [(ask_tcp, 80), (ask_udp, 53), (ask_sctp, 99)])
@pytest.mark.parametrize("family", ["address4", "address6"])
def test_client_reaches_every_backend(net: Topology, ask: Ask, port: int, family: str) -> None:
    for backend in net.backends:
        answer = ask(net.client, getattr(backend, family), port, source_port=40000)
        assert answer == Answer(
            backend.name, getattr(net.client, family), 40000, getattr(backend, family), port, "hello"
        )


def test_walk_through_addresses_are_those_of_the_routed_backends() -> None:
    assert [backend.address4 for backend in Topology().backends] == ["10.1.1.2", "10.1.2.2"]


def test_failures_have_kinds(net: Topology, echoes: EchoServers) -> None:
    a = net.backends[0]
    assert ask_tcp(net.client, a.address4, 81) is Failure.REFUSED
    assert ask_udp(net.client, a.address6, 81) is Failure.REFUSED
    assert ask_tcp(net.hosts[0], "10.255.0.99", 80, timeout=0.3) is Failure.TIMED_OUT
    [listener] = echoes.listen(a, "short-lived", tcp=[82])
    conversation = converse(net.client, a.address4, 82)
    assert isinstance(conversation, Conversation)
    with conversation:
        assert isinstance(conversation.say(), Answer)
        listener.close()
        assert ask_tcp(net.client, a.address4, 82) is Failure.REFUSED
        answer = conversation.say("still here")
        assert isinstance(answer, Answer) and answer.text == "still here"


@pytest.mark.usefixtures("echoes")
def test_curl_gets_name_and_source(net: Topology) -> None:
    a = net.backends[0]
    page = net.client.run(["curl", "-sS", f"http://{a.address4}/"]).stdout
    assert page == f"a {net.client.address4}\n"


@pytest.mark.usefixtures("echoes")
def test_virtual_server_of_ipvsadm_balances(net: Topology) -> None:
    host = net.hosts[0]
    host.sysctl("net.ipv4.vs.conntrack", 1)
    host.ip(f"addr add {VIP4}/32 dev lo", f"addr add {VIP6}/128 dev lo nodad")
    for vip, family in ((f"{VIP4}:8000", "address4"), (f"[{VIP6}]:8000", "address6")):
        host.run(["ipvsadm", "-A", "-t", vip, "-s", "rr"])
        for backend in net.backends:
            address = getattr(backend, family)
            real = f"[{address}]:80" if ":" in address else f"{address}:80"
            host.run(["ipvsadm", "-a", "-t", vip, "-r", real, "-m"])
    host.run(["nft", "-f", "-"], stdin=MASQUERADE)
    try:
        for vip in (VIP4, VIP6):
            answers = [ask_tcp(net.client, vip, 8000) for _ in range(4)]
            assert {answer.backend for answer in answers if isinstance(answer, Answer)} == {"a", "b"}
    finally:
        host.run(["nft", "delete table inet lab"])


def test_store_is_reached_by_the_proxy_hosts_only(net: Topology) -> None:
    with Etcd(net.store) as etcd:
        revision = etcd.put("/services/web", {"clusterIP": VIP4})
        assert etcd.delete("/services/web") == revision + 1
        value = net.hosts[1].run(["curl", "-sS", f"{etcd.endpoint}/health"]).stdout
        assert "true" in value
        assert net.client.run(["curl", "-sSm1", etcd.endpoint], check=False).returncode != 0


def test_until_names_what_it_waited_for() -> None:
    with pytest.raises(TooLate, match=r"pigs fly.*last seen: False"):
        until(lambda: False, 0.05, "pigs fly")
