"""Health answers as load balancers and supervisors get them: KP-210 to KP-225."""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec
import pytest

from edgeproxy.control import tell
from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, Records, answers, endpoint, names, service
from tests.lab.echo import Failure, ask_tcp
from tests.lab.wait import until

HEADER = "x-load-balancing-endpoint-weight"
TERMINATING = {"ready": False, "serving": True, "terminating": True}


class Page(msgspec.Struct):
    """An answer over HTTP: status 0 where nobody listens."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def local_endpoints(self) -> int:
        """What the body says."""
        return int(json.loads(self.body)["localEndpoints"])


def get(fleet: Fleet, port: int, path: str = "/", address: str = "") -> Page:
    """What the client gets from host0."""
    url = f"http://{address or fleet.hosts[0].address4}:{port}{path}"
    done = fleet.client.run(["curl", "-sS", "-i", "-m", "5", url], check=False)
    if done.returncode:
        return Page(0, {}, "")
    head, _, body = done.stdout.replace("\r", "").partition("\n\n")
    first, *lines = head.splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Page(int(first.split()[1]), headers, body)


def balanced(
    fleet: Fleet, port: int, endpoints: Mapping[str, Mapping[str, object]], **fields: object
) -> Records:
    """A load balancer service under the Local policy with a health check port."""
    spec = {
        "type": "LoadBalancer",
        "clusterIP": fleet.cluster_ip(),
        "loadBalancerIPs": [fleet.external_ip()],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": port,
        "ports": [{"port": 80}],
        **fields,
    }
    return service("lb", spec, endpoints)


def here(*addresses: str, **fields: object) -> dict[str, Mapping[str, object]]:
    """Endpoints on host0."""
    return {f"e{n}": {"address": a, "nodeName": "host0", **fields} for n, a in enumerate(addresses)}


@kp("KP-210", "Without a service there is no health check listener")
@kp(
    "KP-211",
    "A health check port answers any path with 200, the number of ready local endpoints, and its header",
)
@kp("KP-214", "When the port changes the old one closes and the new one opens; with the service it closes")
def test_kp_210_a_port_comes_moves_and_goes(fleet: Fleet) -> None:
    first, second = fleet.node_port(), fleet.node_port()
    assert get(fleet, first).status == 0
    fleet.put(balanced(fleet, first, here("10.1.1.2", "10.1.1.3", "10.1.3.2")))
    for path in ("/", "/any/path?at=all"):
        page = get(fleet, first, path)
        assert (page.status, page.local_endpoints, page.headers[HEADER]) == (200, 3, "3")
    body = json.loads(page.body)
    assert body["service"]["name"] == "lb"
    assert body["serviceProxyHealthy"] is True
    assert get(fleet, first, address=f"[{fleet.hosts[0].address6}]").status == 200

    fleet.put(balanced(fleet, second, {}))
    until(lambda: get(fleet, first).status == 0, 20, "the old port is closed")
    assert get(fleet, second).local_endpoints == 3
    fleet.put({"/services/lb": None})
    until(lambda: get(fleet, second).status == 0, 20, "the port is closed")


@kp("KP-212", "Without a local endpoint: 503, count 0, weight 0")
@kp("KP-215", "Without any endpoint record: 503")
def test_kp_212_no_local_endpoint(fleet: Fleet) -> None:
    port = fleet.node_port()
    for endpoints in ({}, {"b": endpoint(fleet.backends[1])}):
        fleet.put(balanced(fleet, port, endpoints))
        page = get(fleet, port)
        assert (page.status, page.local_endpoints, page.headers[HEADER]) == (503, 0, "0")


@kp("KP-217", "Two endpoints with one address and two ports are counted once")
@kp("KP-218", "Local endpoints that all terminate count as none, although they still serve")
def test_kp_217_what_is_counted(fleet: Fleet) -> None:
    port = fleet.node_port()
    records = balanced(fleet, port, here("10.1.1.2"))
    fleet.put(
        records | {"/services/lb/endpoints/other": {"address": "10.1.1.2", "port": 8080, "nodeName": "host0"}}
    )
    assert get(fleet, port).local_endpoints == 1

    gone: Records = {"/services/lb/endpoints/other": None}
    records = balanced(fleet, port, here("10.1.1.2", **TERMINATING))
    fleet.put(records | gone)
    page = get(fleet, port)
    assert (page.status, page.local_endpoints) == (503, 0)
    spec = records["/services/lb"]
    assert isinstance(spec, dict)
    [external] = spec["loadBalancerIPs"]
    assert names(answers(fleet.client, external, 80, 1)) == {"a"}


@kp(
    "KP-222",
    "A host marked as leaving (`edgeproxy cordon`): /healthz 503, /livez 200; after `uncordon` both 200",
)
@kp("KP-223", "The mark changes nothing at health check ports")
def test_kp_222_cordon(fleet: Fleet) -> None:
    port, daemon = fleet.node_port(), fleet.daemons[0]
    fleet.put(balanced(fleet, port, here("10.1.1.2")))

    def seen() -> tuple[int, int, int]:
        return (
            get(fleet, 10256, "/healthz").status,
            get(fleet, 10256, "/livez").status,
            get(fleet, port).status,
        )

    assert seen() == (200, 200, 200)
    tell(daemon.directory / "state", "cordon", 60)
    assert seen() == (503, 200, 200)
    tell(daemon.directory / "state", "uncordon", 60)
    assert seen() == (200, 200, 200)


@kp("KP-224", "Answers are JSON with nosniff, and counted by code")
def test_kp_224_headers_and_counters(fleet: Fleet) -> None:
    port, daemon = fleet.node_port(), fleet.daemons[0]
    fleet.put(balanced(fleet, port, here("10.1.1.2")))
    for number, path in ((10256, "/healthz"), (10256, "/livez"), (port, "/")):
        page = get(fleet, number, path)
        assert page.headers["content-type"].startswith("application/json")
        assert page.headers["x-content-type-options"] == "nosniff"
    for name in ("healthz", "livez"):
        counter = f'edgeproxy_{name}_total{{code="200"}}'
        before = daemon.metric(counter)
        get(fleet, 10256, f"/{name}")
        assert daemon.metric(counter) == before + 1


@kp("KP-225", "Under externalTrafficPolicy Cluster a health check port in the record opens nothing")
def test_kp_225_cluster_policy(fleet: Fleet) -> None:
    port = fleet.node_port()
    fleet.put(balanced(fleet, port, here("10.1.1.2"), externalTrafficPolicy="Cluster"))
    assert ask_tcp(fleet.client, fleet.hosts[0].address4, port) is Failure.REFUSED
    fleet.put(balanced(fleet, port, here("10.1.1.2")))
    assert get(fleet, port).status == 200


@kp("KP-214", "With node_port_addresses health check ports listen on those addresses only")
@pytest.mark.parametrize("choice", [["10.1.1.0/24", "127.0.0.0/8"], ["primary"]])
def test_kp_214_chosen_addresses(fleet: Fleet, choice: list[str]) -> None:
    port = fleet.node_port()
    fleet.put(balanced(fleet, port, here("10.1.1.2")))
    chosen = "10.1.1.11" if choice != ["primary"] else "10.1.0.11"
    left_out = "10.1.0.11" if choice != ["primary"] else "10.1.1.11"
    with fleet.configured(0, proxy={"node_port_addresses": choice}):
        until(lambda: get(fleet, port, address=left_out).status == 0, 20, f"{left_out} is closed")
        until(lambda: get(fleet, port, address=chosen).status == 200, 20, f"{chosen} answers")
        assert (fleet.daemons[0].get("/", port)[0] == 200) is (choice != ["primary"]), (
            "on loopback, if listed"
        )
    until(lambda: get(fleet, port, address=left_out).status == 200, 20, f"{left_out} is open again")
