"""What becomes of virtual and real servers, ours and others', with packets: KP-151 to KP-167."""

from __future__ import annotations

import pytest

from edgeproxy.cleanup import cleanup
from edgeproxy.config import load
from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, answers, endpoint, names, service
from tests.lab.daemon import ipvs
from tests.lab.echo import Answer, Conversation, Failure, ask_tcp, ask_udp, converse
from tests.lab.namespace import Host
from tests.lab.wait import until

WEB = [{"port": 80}]
FOREIGN = {4: "192.0.2.1:80", 6: "[2001:db8:f::1]:80"}


def lines(host: Host, frontend: str) -> list[str]:
    """The virtual server at an `address:port` and its real servers, as `ipvsadm` tells."""
    return [line.strip() for line in ipvs(host) if f" {frontend} " in line]


def weights(host: Host, frontend: str) -> dict[str, int]:
    """Real servers and their weights."""
    reals = (line.split() for line in lines(host, frontend) if line.startswith("-a"))
    return {words[words.index("-r") + 1]: int(words[words.index("-w") + 1]) for words in reals}


def open_to(fleet: Fleet, address: str, backend: str, *, port: int = 80, sctp: bool = False) -> Conversation:
    """A connection of the client to a service that has reached a certain backend."""
    for _ in range(6):
        conversation = converse(fleet.client, address, port, sctp=sctp)
        assert isinstance(conversation, Conversation), conversation
        answer = conversation.say()
        if isinstance(answer, Answer) and answer.backend == backend:
            return conversation
        conversation.close()
    raise AssertionError(f"six connections to {address} and none reached {backend}")


@kp("KP-151", "Scheduler, affinity and weights are edited in place: real servers and connections stay")
def test_kp_151_edits_in_place(fleet: Fleet) -> None:
    address, host = fleet.cluster_ip(), fleet.hosts[0]
    a, b, _ = fleet.backends
    endpoints = {"a": endpoint(a), "b": endpoint(b)}
    fleet.put(service("web", {"clusterIP": address, "ports": WEB}, endpoints))
    with open_to(fleet, address, "a") as conversation:
        spec = {"clusterIP": address, "ports": WEB, "scheduler": "lc", "sessionAffinity": "ClientIP"}
        fleet.put(service("web", spec, {"a": endpoint(a, weight=7)}))
        assert lines(host, f"{address}:80")[0] == f"-A -t {address}:80 -s lc -p 10800"
        assert weights(host, f"{address}:80") == {"10.1.1.2:80": 7, "10.1.2.2:80": 1}
        assert isinstance(conversation.say("still here"), Answer)


@kp("KP-152", "A TCP endpoint without connections is deleted at once")
def test_kp_152_idle(fleet: Fleet) -> None:
    address = fleet.cluster_ip()
    a, b, _ = fleet.backends
    fleet.put(service("web", {"clusterIP": address, "ports": WEB}, {"a": endpoint(a), "b": endpoint(b)}))
    fleet.put({"/services/web/endpoints/a": None})
    assert weights(fleet.hosts[0], f"{address}:80") == {"10.1.2.2:80": 1}


@kp(
    "KP-154",
    "A TCP endpoint that has only closing connections left goes to weight 0 and is kept, to its deadline",
    differs="kept without any limit of time",
)
def test_kp_154_closing_connections(fleet: Fleet) -> None:
    address, host = fleet.cluster_ip(), fleet.hosts[0]
    a, b, _ = fleet.backends
    spec = {"clusterIP": address, "ports": WEB, "scheduler": "rr", "drainSeconds": 5}
    fleet.put(service("web", spec, {"a": endpoint(a), "b": endpoint(b)}))
    assert names(answers(fleet.client, address, 80, 4)) == {"a", "b"}
    fleet.put({"/services/web/endpoints/a": None})
    assert weights(host, f"{address}:80") == {"10.1.1.2:80": 0, "10.1.2.2:80": 1}
    assert names(answers(fleet.client, address, 80, 3)) == {"b"}
    until(lambda: weights(host, f"{address}:80") == {"10.1.2.2:80": 1}, 40, "the drain is over")


@kp("KP-155", "A UDP or SCTP endpoint is deleted at once, whatever connections it has")
def test_kp_155_udp_and_sctp(fleet: Fleet) -> None:
    address, host = fleet.cluster_ip(), fleet.hosts[0]
    a, b, _ = fleet.backends
    ports = [
        {"name": "udp", "port": 53, "protocol": "UDP"},
        {"name": "sctp", "port": 3868, "protocol": "SCTP"},
    ]
    spec = {"clusterIP": address, "ports": ports, "scheduler": "rr"}
    fleet.put(service("mix", spec, {"a": endpoint(a), "b": endpoint(b)}))
    assert names(answers(fleet.client, address, 53, 4, ask_udp)) == {"a", "b"}
    with open_to(fleet, address, "a", port=3868, sctp=True):
        fleet.put({"/services/mix/endpoints/a": None})
        assert weights(host, f"{address}:53") == {"10.1.2.2:53": 1}
        assert weights(host, f"{address}:3868") == {"10.1.2.2:3868": 1}
    assert names(answers(fleet.client, address, 53, 3, ask_udp)) == {"b"}


@kp(
    "KP-159",
    "An endpoint that comes back while it drains serves again at once, its connections unharmed",
    differs="deletes the real server and adds it anew",
)
def test_kp_159_back_again(fleet: Fleet) -> None:
    address, host = fleet.cluster_ip(), fleet.hosts[0]
    a, b, _ = fleet.backends
    fleet.put(service("web", {"clusterIP": address, "ports": WEB}, {"a": endpoint(a), "b": endpoint(b)}))
    with open_to(fleet, address, "a") as conversation:
        fleet.put({"/services/web/endpoints/a": None})
        assert weights(host, f"{address}:80") == {"10.1.1.2:80": 0, "10.1.2.2:80": 1}
        assert isinstance(conversation.say("draining"), Answer)
        fleet.put({"/services/web/endpoints/a": endpoint(a)})
        assert weights(host, f"{address}:80") == {"10.1.1.2:80": 1, "10.1.2.2:80": 1}
        assert isinstance(conversation.say("back"), Answer)
    assert names(answers(fleet.client, address, 80, 4)) == {"a", "b"}


@kp(
    "KP-161",
    "Virtual servers of other software are left alone with their real servers, and told of where they are in the way",
    differs="deletes every virtual server that is not its own",
)
@kp(
    "KP-162",
    "The same for both families; nothing has to be excluded by configuration",
    differs="spares those in excludeCIDRs, for each family its own",
)
@pytest.mark.parametrize("family", [4, 6])
def test_kp_161_what_others_made(fleet: Fleet, family: int) -> None:
    host, address = fleet.hosts[0], fleet.cluster_ip(family)
    real = "10.1.1.2:80" if family == 4 else "[fd00:1:1::2]:80"
    host.run(["ipvsadm", "-A", "-t", FOREIGN[family], "-s", "sh"])
    host.run(["ipvsadm", "-a", "-t", FOREIGN[family], "-r", real, "-m", "-w", "9"])
    try:
        before = lines(host, FOREIGN[family])
        assert len(before) == 2
        ports = [{"port": 80}]
        with fleet.configured(0, proxy={"resync": "1s"}):
            audits = fleet.daemons[0].metric('edgeproxy_sync_seconds_count{scope="full"}')
            fleet.put(
                service(
                    "web", {"clusterIP": address, "ports": ports}, {"a": endpoint(fleet.backends[0], family)}
                )
            )
            assert names(answers(fleet.client, address, 80, 1)) == {"a"}
            until(
                lambda: fleet.daemons[0].metric('edgeproxy_sync_seconds_count{scope="full"}') > audits + 1,
                30,
                "two audits",
            )
            fleet.put({"/services/web": None, "/services/web/endpoints/a": None})
        assert lines(host, FOREIGN[family]) == before
    finally:
        host.run(["ipvsadm", "-D", "-t", FOREIGN[family]])


@kp(
    "KP-163",
    "A service that is deleted leaves the kernel in the same sync, its addresses with it",
    differs="open connections are cut; here they drain first",
)
def test_kp_163_a_deleted_service(fleet: Fleet) -> None:
    address, external, port = fleet.cluster_ip(), fleet.external_ip(), fleet.node_port()
    host = fleet.hosts[0]
    spec = {
        "clusterIP": address,
        "externalIPs": [external],
        "ports": [{"port": 80, "nodePort": port}],
    }
    fleet.put(service("web", spec, {"a": endpoint(fleet.backends[0])}))
    frontends = (f"{address}:80", f"{external}:80", f"169.254.96.1:{port}")
    assert [len(lines(host, frontend)) for frontend in frontends] == [2, 2, 2]
    fleet.put({"/services/web": None, "/services/web/endpoints/a": None})
    assert [len(lines(host, frontend)) for frontend in frontends] == [0, 0, 0]
    rules = host.run(["nft", "list", "ruleset"]).stdout
    for gone in (address, external):
        assert gone not in rules
        assert not isinstance(ask_tcp(fleet.client, gone, 80, timeout=0.5), Answer)
    assert external not in host.run(["ip", "route", "show", "table", "local"]).stdout


@kp("KP-164", "Addresses and routes of ours that no service uses are taken away")
def test_kp_164_addresses_nobody_uses(fleet: Fleet) -> None:
    host, stray = fleet.hosts[0], "192.0.2.77"
    routes = ["ip", "route", "show", "table", "local"]
    with fleet.configured(0, proxy={"resync": "1s"}):
        host.ip(f"route add local {stray} dev lo proto 96")
        host.run(["nft", "add", "element", "inet", "edgeproxy", "addresses4", f"{{ {stray} }}"])
        until(
            lambda: stray not in host.run(["nft", "list", "table", "inet", "edgeproxy"]).stdout,
            30,
            "the element is gone",
        )
        until(lambda: stray not in host.run(routes).stdout, 30, "the route is gone")


@kp("KP-165", "While the tables cannot be written: counted as failure, nothing removed, not healthy, retried")
@kp("KP-232", "A sync that fails is tried again, at growing intervals")
def test_kp_165_tables_that_cannot_be_written(fleet: Fleet) -> None:
    host, daemon, client = fleet.hosts[0], fleet.daemons[0], fleet.client
    address, new = fleet.cluster_ip(), fleet.cluster_ip()
    fleet.put(service("web", {"clusterIP": address, "ports": WEB}, {"a": endpoint(fleet.backends[0])}))
    with fleet.configured(0, proxy={"resync": "1s"}):
        failures = daemon.metric("edgeproxy_sync_failures_total")
        # A table of the same name whose map is a set: ours cannot be loaded over it.
        host.run(
            ["nft", "-f", "-"],
            stdin="delete table inet edgeproxy\nadd table inet edgeproxy\n"
            "add set inet edgeproxy frontends4 { type ipv4_addr; }\n",
        )
        until(lambda: daemon.metric("edgeproxy_sync_failures_total") > failures, 30, "a failure is counted")
        fleet.etcd.write(service("new", {"clusterIP": new, "ports": WEB}, {"a": endpoint(fleet.backends[0])}))
        assert lines(host, f"{address}:80")
        assert names(answers(client, address, 80, 1)) == {"a"}
        until(lambda: daemon.get("/healthz")[0] == 503, 30, "the host counts as late")
        assert any(finding["reason"] == "Kernel" for finding in daemon.status()["findings"])
        failures = daemon.metric("edgeproxy_sync_failures_total")
        until(lambda: daemon.metric("edgeproxy_sync_failures_total") > failures, 60, "it is tried again")

        host.run(["nft", "delete", "table", "inet", "edgeproxy"])
        until(lambda: daemon.get("/healthz")[0] == 200, 60, "the host has caught up")
        fleet.settled()
        assert names(answers(client, new, 80, 1)) == {"a"}
    fleet.put(dict.fromkeys(("/services/new", "/services/new/endpoints/a")))


@kp("KP-167", "`cleanup` leaves nothing of ours in the kernel; the next start serves again")
def test_kp_167_cleanup(fleet: Fleet) -> None:
    host, daemon = fleet.hosts[1], fleet.daemons[1]
    address = fleet.cluster_ip().replace("10.96", "10.97")
    fleet.put(service("web", {"clusterIP": address, "ports": WEB}, {"b": endpoint(fleet.backends[1])}))
    assert names(answers(fleet.client, address, 80, 1)) == {"b"}
    daemon.terminate()
    try:
        removed = host.in_namespace(lambda: list(cleanup(load(daemon.configuration))))
        assert any(f"virtual server tcp/{address}:80" in line for line in removed)
        assert ipvs(host) == []
        assert "edgeproxy" not in host.run(["nft", "list", "ruleset"]).stdout
        assert "proto 96" not in host.run(["ip", "route", "show", "table", "all"]).stdout
        assert not isinstance(ask_tcp(fleet.client, address, 80, timeout=0.5), Answer)
    finally:
        daemon.start()
    fleet.settled()
    assert names(answers(fleet.client, address, 80, 1)) == {"b"}
    assert ask_tcp(fleet.client, address, 81) is Failure.REFUSED
