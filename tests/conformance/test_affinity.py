"""Session affinity with packets: KP-140 to KP-145."""

from __future__ import annotations

import pytest

from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, Records, answers, endpoint, names, service
from tests.lab.daemon import ipvs
from tests.lab.echo import ask_udp
from tests.lab.namespace import Host
from tests.lab.wait import until

CLIENT_IP = {"sessionAffinity": "ClientIP"}


def sticky(fleet: Fleet, address: str, **fields: object) -> Records:
    """A service at all backends; rr, so that without affinity two requests meet two of them."""
    endpoints = {b.name: endpoint(b) for b in fleet.backends}
    spec = {"clusterIP": address, "scheduler": "rr", "ports": [{"port": 80}], **fields}
    return service("sticky", spec, endpoints)


@kp("KP-140", "Under ClientIP affinity fifteen calls of one client to a cluster IP meet one endpoint")
def test_kp_140_cluster_ip(fleet: Fleet) -> None:
    address = fleet.cluster_ip()
    fleet.put(sticky(fleet, address, **CLIENT_IP))
    assert len(names(answers(fleet.client, address, 80, 15))) == 1
    for machine in (fleet.hosts[0], fleet.backends[0]):
        assert len(names(answers(machine, address, 80, 3))) == 1


@kp(
    "KP-141",
    "The same through a node port and a load balancer address; affinity is kept for each frontend of its own",
)
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_kp_141_node_port_and_load_balancer(fleet: Fleet, policy: str) -> None:
    port, external = fleet.node_port(), fleet.external_ip()
    fields = {"loadBalancerIPs": [external], "externalTrafficPolicy": policy, **CLIENT_IP}
    fleet.put(sticky(fleet, fleet.cluster_ip(), ports=[{"port": 80, "nodePort": port}], **fields))
    for address, number in ((fleet.hosts[0].address4, port), (external, 80)):
        assert len(names(answers(fleet.client, address, number, 5))) == 1
        assert len(names(answers(fleet.hosts[0], address, number, 5))) == 1


@kp(
    "KP-142",
    "A client that was idle longer than the timeout, and has no connection left, may meet another endpoint",
)
def test_kp_142_the_timeout(fleet: Fleet) -> None:
    address, host = fleet.cluster_ip(), fleet.hosts[0]
    config = {"clientIP": {"timeoutSeconds": 1}}
    ports = [{"port": 53, "protocol": "UDP"}]
    # IPVS keeps the affinity as long as there are connections of the client: those of UDP shall end soon.
    host.run(["ipvsadm", "--set", "0", "0", "1"])
    try:
        fleet.put(sticky(fleet, address, sessionAffinityConfig=config, ports=ports, **CLIENT_IP))
        [first] = names(answers(fleet.client, address, 53, 3, ask_udp))
        until(lambda: not entries(host, address), 90, "the affinity has ended")
        assert names(answers(fleet.client, address, 53, 1, ask_udp)) != {first}
    finally:
        host.run(["ipvsadm", "--set", "0", "0", "300"])


def entries(host: Host, address: str) -> list[str]:
    """The connections and affinities IPVS has for a service address."""
    return [line for line in host.run(["ipvsadm", "-Lnc"]).stdout.splitlines() if f"{address}:" in line]


@kp("KP-143", "Affinity is switched on and off while the service runs")
def test_kp_143_switched_on_and_off(fleet: Fleet) -> None:
    address = fleet.cluster_ip()
    for fields, count in ((CLIENT_IP, 1), ({}, 3), (CLIENT_IP, 1)):
        fleet.put(sticky(fleet, address, **fields))
        assert len(names(answers(fleet.client, address, 80, 6))) == count


@kp("KP-144", "Affinity is IPVS persistence with the service's timeout, by default 10800 s; None is neither")
def test_kp_144_persistence(fleet: Fleet) -> None:
    address = fleet.cluster_ip()
    config = {"clientIP": {"timeoutSeconds": 90}}
    for fields, expected in (
        (CLIENT_IP, "-s rr -p 10800"),
        ({**CLIENT_IP, "sessionAffinityConfig": config}, "-s rr -p 90"),
        ({"sessionAffinity": "None"}, "-s rr"),
    ):
        fleet.put(sticky(fleet, address, **fields))
        [line] = [line for line in ipvs(fleet.hosts[0]) if line.startswith(f"-A -t {address}:")]
        assert line.strip() == f"-A -t {address}:80 {expected}"


@kp("KP-145", "Scheduler mh hashes source address and port: one client meets several endpoints")
def test_kp_145_maglev(fleet: Fleet) -> None:
    address = fleet.cluster_ip()
    fleet.put(sticky(fleet, address, scheduler="mh"))
    [line] = [line for line in ipvs(fleet.hosts[0]) if line.startswith(f"-A -t {address}:")]
    assert line.strip() == f"-A -t {address}:80 -s mh -b mh-port"
    assert len(names(answers(fleet.client, address, 80, 12))) > 1
