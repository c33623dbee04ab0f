"""A daemon that comes back, with packets, in one scenario: KP-035, KP-036, KP-082.

host0's daemon is killed; meanwhile one service is made, one deleted, one endpoint exchanged. It
starts again while the store hangs; then the store answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from tests.conformance.behaviour import kp
from tests.conformance.fleet import Fleet, Records, answers, endpoint, names, service
from tests.lab.daemon import ipvs
from tests.lab.echo import Answer, Conversation, Failure, ask_tcp, converse
from tests.lab.wait import until


class Observations(msgspec.Struct):
    """What was seen on the way.

    while_down: who answered at the old service without a daemon. waiting: the same, and whether the
    kernel's virtual servers were as before, once the new daemon waited for the store.
    """

    old: str
    new: str
    deleted: str
    while_down: set[str]
    waiting: set[str]
    unchanged: bool
    ready_too_early: bool
    conversation: Answer | Failure
    served: list[set[str]]
    after_deletion: Failure | Answer


@pytest.fixture(scope="module")
def seen(running_fleet: Fleet) -> Iterator[Observations]:
    with ExitStack() as stack:
        stack.callback(running_fleet.forget)
        yield _scenario(running_fleet, stack)


def _scenario(fleet: Fleet, stack: ExitStack) -> Observations:
    host, daemon, client = fleet.hosts[0], fleet.daemons[0], fleet.client
    old, new, deleted = (fleet.cluster_ip() for _ in range(3))
    a, b, c = (endpoint(backend) for backend in fleet.backends)
    ports = [{"port": 80}]
    removed = service("deleted", {"clusterIP": deleted, "ports": ports}, {"c": c})
    fleet.put(service("old", {"clusterIP": old, "ports": ports}, {"a": a, "b": b}) | removed)
    conversation = _open(fleet, old, "b")
    stack.callback(conversation.close)
    daemon.kill()
    while_down = names(answers(client, old, 80))
    changes: Records = {
        **service("new", {"clusterIP": new, "ports": ports}, {"c": c}),
        **dict.fromkeys(removed),
        "/services/old/endpoints/a": None,
        "/services/old/endpoints/c": c,
    }
    fleet.put(changes)  # host1 applies them
    before = ipvs(host)
    fleet.etcd.stop()
    try:
        daemon.start(wait=False)
        until(lambda: daemon.get("/livez")[0] == 200, 120, "the daemon is up")
        early, waiting, unchanged = daemon.is_ready(), names(answers(client, old, 80)), ipvs(host) == before
    finally:
        fleet.etcd.cont()
    until(daemon.is_ready, 120, "the daemon is ready")
    fleet.settled()
    return Observations(
        old=old,
        new=new,
        deleted=deleted,
        while_down=while_down,
        waiting=waiting,
        unchanged=unchanged,
        ready_too_early=early,
        conversation=conversation.say("still there?"),
        served=[names(answers(client, address, 80)) for address in (old, new)],
        after_deletion=ask_tcp(client, deleted, 80, timeout=0.5),
    )


def _open(fleet: Fleet, address: str, backend: str) -> Conversation:
    """A conversation with one of the backends of a service."""
    for _ in range(8):
        conversation = converse(fleet.client, address, 80)
        assert isinstance(conversation, Conversation)
        answer = conversation.say()
        if isinstance(answer, Answer) and answer.backend == backend:
            return conversation
        conversation.close()
    raise AssertionError(f"{backend} never answered at {address}")


@kp("KP-035", "A daemon without a complete snapshot of the records changes nothing in the kernel")
def test_kp_035_nothing_before_the_records_are_complete(seen: Observations) -> None:
    assert not seen.ready_too_early
    assert seen.unchanged
    assert seen.waiting == {"a", "b"}


@kp("KP-036", "After a restart the first sync removes what is really gone and breaks no flow in progress")
def test_kp_036_the_first_sync_adopts(seen: Observations) -> None:
    assert isinstance(seen.conversation, Answer)
    assert seen.conversation.backend == "b"
    assert isinstance(seen.after_deletion, Failure)
    assert seen.served[0] == {"b", "c"}


@kp("KP-082", "While the daemon is down services are reachable; those made meanwhile work once it is back")
def test_kp_082_restart(seen: Observations) -> None:
    assert seen.while_down == {"a", "b"}
    assert seen.served[1] == {"c"}
