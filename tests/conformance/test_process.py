"""The daemon as a process: timing, repair, reload, the host's and the store's changes: KP-230 to KP-241."""

from __future__ import annotations

import time

from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, Records, answers, endpoint, names, service
from tests.lab.daemon import Daemon, ipvs
from tests.lab.echo import Answer, Conversation, ask_tcp, converse
from tests.lab.wait import until

WEB = [{"port": 80}]


def web(fleet: Fleet, address: str, *backends: int, **fields: object) -> Records:
    """A service at backends by number."""
    chosen = {fleet.backends[n].name: endpoint(fleet.backends[n]) for n in backends}
    return service("web", {"clusterIP": address, "ports": WEB, "scheduler": "rr", **fields}, chosen)


def syncs(daemon: Daemon) -> float:
    """How many there were."""
    return sum(
        daemon.metric(f'edgeproxy_sync_seconds_count{{scope="{scope}"}}') for scope in ("full", "partial")
    )


@kp("KP-230", "A burst of changes is synced at most once each `min_sync`")
def test_kp_230_a_burst(fleet: Fleet) -> None:
    daemon = fleet.daemons[0]
    with fleet.configured(0, proxy={"min_sync": "1s"}):
        fleet.put(web(fleet, fleet.cluster_ip(), 0))
        began, before = time.monotonic(), syncs(daemon)
        for number in range(50):
            fleet.etcd.put("/services/web/endpoints/a", endpoint(fleet.backends[0], weight=2 + number))
        fleet.settled()
        # Looks at what still drains of other tests, one a second, count as well.
        assert syncs(daemon) - before <= 2 * (time.monotonic() - began) + 2
    assert any("-w 51" in line for line in ipvs(fleet.hosts[0]))


@kp("KP-231", "Each `resync` the kernel is compared with the records: what was deleted by hand comes back")
def test_kp_231_repair(fleet: Fleet) -> None:
    address, host = fleet.cluster_ip(), fleet.hosts[0]
    fleet.put(web(fleet, address, 0))
    with fleet.configured(0, proxy={"resync": "1s"}):
        before = syncs(fleet.daemons[0])
        until(lambda: syncs(fleet.daemons[0]) >= before + 2, 30, "two audits without any change")
        host.run(["ipvsadm", "-D", "-t", f"{address}:80"])
        until(
            lambda: isinstance(ask_tcp(fleet.client, address, 80, timeout=1), Answer),
            30,
            "it is served again",
        )


@kp(
    "KP-235",
    "A configuration that is rewritten is taken on SIGHUP, a bad one not at all; connections and state stay",
    differs="the process exits whenever its file changes",
)
def test_kp_235_reload(fleet: Fleet) -> None:
    address, daemon = fleet.cluster_ip(), fleet.daemons[0]
    fleet.put(web(fleet, address, 0))
    conversation = converse(fleet.client, address, 80)
    assert isinstance(conversation, Conversation)
    with conversation:
        before = ipvs(fleet.hosts[0])
        with fleet.configured(0, proxy={"scheduler": "lc", "drain": "10s"}):
            assert ipvs(fleet.hosts[0]) == before
            good = daemon.configuration.read_text()
            daemon.configuration.write_text(good + "\nnonsense = 1\n")
            daemon.reload()
            daemon.configuration.write_text(good)
        assert ipvs(fleet.hosts[0]) == before
        assert isinstance(conversation.say("still here"), Answer)
    assert daemon.process is not None
    assert daemon.process.poll() is None


@kp("KP-236", "When the host's zone changes the lists of endpoints follow")
def test_kp_236_zone(fleet: Fleet) -> None:
    address = fleet.cluster_ip()
    records = web(fleet, address, trafficDistribution="PreferClose")
    for number, zone in ((0, "east"), (1, "west")):
        backend = fleet.backends[number]
        records[f"/services/web/endpoints/{backend.name}"] = endpoint(backend, zone=zone)
    fleet.put(records)
    assert names(answers(fleet.client, address, 80)) == {"a"}
    with fleet.configured(0, node={"zone": "west"}):
        until(lambda: names(answers(fleet.client, address, 80)) == {"b"}, 20, "the other zone serves")
    until(lambda: names(answers(fleet.client, address, 80)) == {"a"}, 20, "the first zone serves again")


@kp(
    "KP-237",
    "When the host's addresses change node ports follow, and the daemon goes on",
    differs="it restarts",
)
def test_kp_237_addresses(fleet: Fleet) -> None:
    port, new, host = fleet.node_port(), "10.1.0.99", fleet.hosts[0]
    fleet.put(web(fleet, fleet.cluster_ip(), 0, ports=[{"port": 80, "nodePort": port}]))
    process = fleet.daemons[0].process
    host.ip(f"addr add {new}/24 dev eth0")
    try:
        assert names(answers(fleet.client, new, port, 1)) == {"a"}
    finally:
        host.ip(f"addr del {new}/24 dev eth0")
    assert process is not None
    assert process.poll() is None
    assert fleet.daemons[0].process is process


@kp("KP-239", "While the store cannot be reached the kernel stays as it is, and /healthz is 200")
@kp(
    "KP-240", "After a compaction of what was missed the records are listed anew: same state, no traffic lost"
)
def test_kp_239_the_store_is_away(fleet: Fleet) -> None:
    address, daemon = fleet.cluster_ip(), fleet.daemons[0]
    fleet.put(web(fleet, address, 0))
    conversation = converse(fleet.client, address, 80)
    assert isinstance(conversation, Conversation)
    before = served(fleet, address)
    assert before
    relists = relisted(daemon)
    with conversation:
        fleet.etcd.kill()
        try:
            until(lambda: not daemon.status()["store"]["connected"], 60, "the daemon notices")
            assert daemon.get("/healthz")[0] == 200
            assert names(answers(fleet.client, address, 80, 2)) == {"a"}
            assert served(fleet, address) == before
            process = daemon.process
            assert process is not None
            process.send_signal(19)  # SIGSTOP: it must not see the changes before they are compacted
        finally:
            fleet.etcd.start()
        for _ in range(5):
            fleet.etcd.put("/services/web/endpoints/a", endpoint(fleet.backends[0], weight=3))
            fleet.etcd.put("/services/web/endpoints/a", endpoint(fleet.backends[0]))
        fleet.etcd.compact(fleet.etcd.revision())
        assert isinstance(conversation.say("nobody is looking"), Answer)
        process.send_signal(18)  # SIGCONT
        fleet.settled()
        assert relisted(daemon) > relists
        assert served(fleet, address) == before
        assert isinstance(conversation.say("still here"), Answer)


def served(fleet: Fleet, address: str) -> list[str]:
    """What IPVS has at an address; elsewhere backends of other tests may end their drains meanwhile."""
    return [line for line in ipvs(fleet.hosts[0]) if f" {address}:" in line]


def relisted(daemon: Daemon) -> float:
    """How often the daemon has listed all records because its revision was compacted away."""
    return daemon.metric('edgeproxy_store_relists_total{cause="compacted"}')


@kp("KP-241", "A malformed record alone is left out, and told of with its key; the others are served")
def test_kp_241_a_malformed_record(fleet: Fleet) -> None:
    good, daemon = fleet.cluster_ip(), fleet.daemons[0]
    bad: Records = {
        "/services/bad1": '{"clusterIP":',
        "/services/bad2": {"clusterIP": "10.96.0.300", "ports": WEB},
        "/services/web/endpoints/bad": "not an address",
    }
    fleet.put(bad | web(fleet, good, 0))
    assert names(answers(fleet.client, good, 80, 2)) == {"a"}
    told = {finding["key"] for finding in daemon.status()["findings"]}
    assert bad.keys() <= told
    until(lambda: all(key in daemon.output() for key in bad), 20, "the log names them")
