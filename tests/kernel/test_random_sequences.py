"""200 random sequences of puts and deletes end in the kernel state of a fresh start on what is left.

One process drives the engine; in between it audits, settles, doubts, restarts, and dies in the
middle of a sync. The state is read by our codec and, independently, by ipvsadm.
"""

from __future__ import annotations

import enum
import itertools
import json
from collections.abc import Iterator, Mapping

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgeproxy.address import parse_network
from edgeproxy.etcd.changes import Event
from edgeproxy.settings import Node, Proxy, Settings
from tests.kernel.engine import Engine, History, Site, finish, ipvsadm_picture, picture

PARTS, SEQUENCES = 4, 50
"""In parts, so that something is heard of it meanwhile."""
SETTINGS = Settings(
    node=Node(name="host0", zone="here"),
    proxy=msgspec.structs.replace(
        Proxy(), service_cidrs=(parse_network("10.96.0.0/16"), parse_network("fd00:96::/112"))
    ),
)
SERVICES, ENDPOINTS, VARIANTS = 5, 4, 14


class Act(enum.Enum):
    """What happens next."""

    PUT_SERVICE = enum.auto()
    PUT_ENDPOINT = enum.auto()
    DELETE_SERVICE = enum.auto()
    DELETE_ENDPOINT = enum.auto()
    SYNC = enum.auto()
    AUDIT = enum.auto()
    SETTLE = enum.auto()
    DOUBT = enum.auto()
    KEEP = enum.auto()
    RESTART = enum.auto()
    CRASH = enum.auto()


# Puts come first and often: sequences shrink towards them, and most of the work is theirs.
ACTS = [*[Act.PUT_SERVICE] * 4, *[Act.PUT_ENDPOINT] * 5, *Act, *[Act.SYNC] * 3]
Step = tuple[Act, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(ACTS),
        st.integers(0, SERVICES - 1),
        st.integers(0, ENDPOINTS - 1),
        st.integers(0, VARIANTS - 1),
    ),
    min_size=3,
    max_size=24,
)


def service(number: int, variant: int) -> str:
    """A record of a service. Addresses and node ports of services 0 and 1 are wanted by others, too."""
    four, six, node_port = f"10.96.0.{number}", f"fd00:96::{number}", 30000 + number
    web = {"name": "web", "port": 80, "targetPort": 8080}
    dns = {"name": "dns", "port": 53, "protocol": "UDP"}
    affinity = {"sessionAffinity": "ClientIP"}
    external = {"type": "LoadBalancer", "externalIPs": [f"192.0.2.{number % 3}", f"2001:db8::{number % 3}"]}
    variants: list[Mapping[str, object] | str] = [
        {"clusterIP": four, "ports": [web]},
        {"clusterIP": four, "ports": [web | {"nodePort": node_port}], **affinity},
        {"clusterIPs": [four, six], "ports": [web | {"nodePort": node_port}, dns | {"nodePort": node_port}]},
        {"clusterIPs": [six, four], "ports": [web, dns], "scheduler": "rr", "drainSeconds": 0},
        {"clusterIP": "10.96.0.0", "ports": [web, {"name": "alt", "port": 8000 + number}]},
        {"ports": [{"port": 80, "nodePort": 30001}]},
        {
            "clusterIPs": [four, six],
            **external,
            "externalTrafficPolicy": "Local",
            "ports": [web | {"nodePort": node_port}, dns],
        },
        {"clusterIP": four, **external, "internalTrafficPolicy": "Local", "ports": [web, dns]},
        {
            "clusterIP": four,
            "loadBalancerIPs": [f"198.51.100.{number}"],
            "type": "LoadBalancer",
            "loadBalancerSourceRanges": ["203.0.113.0/24", f"10.{variant}.0.0/16", "2001:db8::/32"],
            "ports": [web],
        },
        {
            "clusterIP": four,
            "ports": [{"name": "web", "port": 80, "protocol": "SCTP", "nodePort": node_port}],
        },
        {
            "clusterIP": f"172.30.0.{number}",
            "ports": [web],
            **affinity,
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        },
        {"type": "ExternalName", "externalName": "example.org"},
        '{"clusterIP": "10.96.0.',
        {"clusterIP": four, "ports": [{"port": "80"}]},
    ]
    record = variants[variant]
    return record if isinstance(record, str) else json.dumps(record)


def endpoint(number: int, name: int, variant: int) -> str:
    """A record of an endpoint; some addresses are those of other endpoints, or the host's own."""
    four, six = f"10.1.{number}.{name + 2}", f"fd00:1:{number}::{name + 2}"
    variants: list[Mapping[str, object] | str] = [
        four,
        f"{four}:8080",
        six,
        f"[{six}]:8080",
        {"address": four, "weight": 5},
        {"address": four, "weight": 0},
        {"address": four, "ready": False},
        {"address": four, "terminating": True, "serving": True, "ready": False},
        {"address": four, "nodeName": "host0"},
        {"address": six, "nodeName": "host0", "ports": {"web": 81, "dns": 5353}},
        {"address": four, "hints": {"forZones": ["here"]}},
        "10.1.0.11",
        "10.1.1.2:8080",
        {"address": "nowhere"},
    ]
    record = variants[variant]
    return record if isinstance(record, str) else json.dumps(record)


@pytest.fixture(scope="module")
def sites() -> Iterator[tuple[Site, Site]]:
    """Two machines alike."""
    with Site() as one, Site() as other:
        yield one, other


@pytest.fixture(scope="module")
def engine(sites: tuple[Site, Site]) -> Iterator[Engine]:
    engine = sites[0].in_namespace(Engine, SETTINGS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def fresh(sites: tuple[Site, Site]) -> Iterator[Engine]:
    engine = sites[1].in_namespace(Engine, SETTINGS)
    yield engine
    engine.close()


class Run:
    """One sequence."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.history = History()
        self._events: list[Event] = []
        self._kept: bytes | None = None
        engine.empty()
        self._restart()

    def take(self, step: Step) -> None:
        """Does one step; events wait until something else happens and come as one batch."""
        act, number, name, variant = step
        key = f"/services/s{number}"
        match act:
            case Act.PUT_SERVICE:
                self._events.append(self.history.put(key, service(number, variant)))
            case Act.PUT_ENDPOINT:
                value = endpoint(number, name, variant)
                self._events.append(self.history.put(f"{key}/endpoints/e{name}", value))
            case Act.DELETE_SERVICE:
                self._deleted(self.history.delete(key))
            case Act.DELETE_ENDPOINT:
                self._deleted(self.history.delete(f"{key}/endpoints/e{name}"))
            case _:
                self._deliver()
                self._interlude(act, name)

    def _deleted(self, event: Event | None) -> None:
        if event is not None:
            self._events.append(event)

    def _deliver(self) -> None:
        self.engine.reconciler.apply(self._events, self.history.revision)
        self.engine.resolve(self.history)
        self._events = []

    def _interlude(self, act: Act, steps: int) -> None:
        reconciler = self.engine.reconciler
        match act:
            case Act.SYNC:
                self.engine.sync()
            case Act.AUDIT:
                finish(reconciler.audit())
            case Act.SETTLE:
                finish(reconciler.settle())
            case Act.DOUBT:
                reconciler.doubt()
            case Act.KEEP:
                self.engine.sync()
                self._kept = self.engine.keep(self.history)
            case Act.RESTART:
                self._restart()
            case Act.CRASH:
                for _ in itertools.islice(reconciler.sync(), steps):
                    pass
                self._restart()

    def _restart(self) -> None:
        self.engine.restart()
        if self._kept is None:
            self.engine.load(self.history)
        else:
            self.engine.go_on(self._kept, self.history)

    def finish(self) -> None:
        """Everything is delivered and in the kernel."""
        self._deliver()
        self.engine.sync()


@pytest.mark.parametrize("part", range(PARTS))
@settings(
    max_examples=SEQUENCES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    # Shrinking a failure would take minutes in emulation; 24 steps can be read as they are.
    phases=(Phase.generate,),
)
@given(steps=STEPS)
def test_same_kernel_as_a_fresh_start(
    sites: tuple[Site, Site], engine: Engine, fresh: Engine, part: int, steps: list[Step]
) -> None:
    with sites[0].inside():
        run = Run(engine)
        for step in steps:
            run.take(step)
        run.finish()
        found = picture(engine.wires)
        before = engine.operations
        finish(engine.reconciler.audit())
        assert engine.operations == before, "an audit of what nobody changed wrote to the kernel"
        findings = engine.reconciler.findings()
        engine.restart()
        engine.load(run.history)
        engine.sync()
        assert engine.operations == 0, "a restart on an unchanged kernel wrote to it"
        assert engine.reconciler.findings() == findings
    with sites[1].inside():
        fresh.empty()
        fresh.restart()
        fresh.load(run.history)
        fresh.sync()
        assert found == picture(fresh.wires)
    told, expected = ipvsadm_picture(sites[0], engine.wires), ipvsadm_picture(sites[1], fresh.wires)
    assert told == expected
