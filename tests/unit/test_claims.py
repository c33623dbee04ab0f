"""Who gets a frontend or node port that several services claim."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.address import parse
from edgeproxy.claims import Claim, Claimant, Claims, LostClaim, NodePortClaim, claims
from edgeproxy.model import Frontend, Protocol
from edgeproxy.records import Service, ServicePort, ServiceType, TrafficPolicy

VIP = parse("10.96.0.10")


def claimant(name: str, revision: int) -> Claimant:
    return Claimant(revision, f"/services/{name}", name)


def node_port(*numbers: int, protocol: Protocol = Protocol.TCP) -> Service:
    return Service(
        ports=tuple(
            ServicePort(port=80 + index, target_port=80, protocol=protocol, node_port=number)
            for index, number in enumerate(numbers)
        )
    )


def test_a_service_claims_every_address_and_port_of_it() -> None:
    service = Service(
        ports=(ServicePort(port=80, target_port=80, node_port=36200),),
        cluster_ips=(VIP,),
        external_ips=(parse("192.0.2.1"),),
        load_balancer_ips=(parse("2001:db8::1"),),
        type=ServiceType.LOAD_BALANCER,
        external_policy=TrafficPolicy.LOCAL,
        health_check_node_port=36999,
    )
    assert list(claims(service)) == [
        ("ports[0].port", Frontend(VIP, Protocol.TCP, 80)),
        ("ports[0].port", Frontend(parse("192.0.2.1"), Protocol.TCP, 80)),
        ("ports[0].port", Frontend(parse("2001:db8::1"), Protocol.TCP, 80)),
        ("ports[0].nodePort", NodePortClaim(Protocol.TCP, 36200)),
        ("healthCheckNodePort", NodePortClaim(Protocol.TCP, 36999)),
    ]


def test_a_health_check_port_that_is_not_used_claims_nothing() -> None:
    assert list(claims(Service(health_check_node_port=36999))) == []


def test_an_external_name_claims_nothing() -> None:
    assert list(claims(Service(cluster_ips=(VIP,), type=ServiceType.EXTERNAL_NAME))) == []


def test_the_lower_create_revision_wins_and_the_other_keeps_its_other_ports() -> None:
    book = Claims()
    book.enter(claimant("late", 9), node_port(36200, 36201))
    book.enter(claimant("early", 5), node_port(36200))
    assert book.settle() == {"late"}
    lost = NodePortClaim(Protocol.TCP, 36200)
    assert book.lost("late") == (LostClaim("ports[0].nodePort", lost, "/services/early"),)
    assert book.lost("early") == ()
    assert book.winner(NodePortClaim(Protocol.TCP, 36201)) == claimant("late", 9)


def test_one_transaction_is_decided_by_key() -> None:
    book = Claims()
    book.enter(claimant("b", 5), node_port(36200))
    book.enter(claimant("a", 5), node_port(36200))
    assert book.settle() == {"b"}


def test_protocols_do_not_meet() -> None:
    book = Claims()
    book.enter(claimant("a", 5), node_port(36200))
    book.enter(claimant("b", 6), node_port(36200, protocol=Protocol.UDP))
    assert book.settle() == frozenset()


def test_a_health_check_port_meets_node_ports() -> None:
    book = Claims()
    health = Service(
        type=ServiceType.LOAD_BALANCER, external_policy=TrafficPolicy.LOCAL, health_check_node_port=36200
    )
    book.enter(claimant("a", 5), node_port(36200))
    book.enter(claimant("b", 6), health)
    assert book.settle() == {"b"}
    assert book.lost("b")[0].path == "healthCheckNodePort"


def test_the_next_in_line_follows_and_only_those_whose_losses_differ_are_named() -> None:
    book = Claims()
    for name, revision in (("a", 1), ("b", 2), ("c", 3)):
        book.enter(claimant(name, revision), node_port(36200))
    assert book.settle() == {"b", "c"}
    book.leave("b")
    assert book.settle() == {"b"}
    book.leave("a")
    assert book.settle() == {"c"}
    assert book.losers() == ()
    book.leave("nobody")
    assert book.settle() == frozenset()


def test_what_changes_back_before_it_is_judged_is_no_change() -> None:
    book = Claims()
    book.enter(claimant("a", 1), node_port(36200))
    book.enter(claimant("b", 2), node_port(36200))
    book.settle()
    book.leave("a")
    book.enter(claimant("a", 1), node_port(36200))
    assert book.settle() == frozenset()


STEPS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.none() | st.tuples(st.integers(1, 4), st.lists(st.integers(1, 4), max_size=3, unique=True)),
        st.booleans(),
    ),
    max_size=30,
)


@given(STEPS)
def test_any_history_ends_where_the_claims_alone_say(
    steps: list[tuple[str, tuple[int, list[int]] | None, bool]],
) -> None:
    book = Claims()
    held: dict[str, tuple[Claimant, Service]] = {}
    told: dict[str, tuple[LostClaim, ...]] = {}
    for name, wanted, judge in steps:
        if wanted is None:
            book.leave(name)
            held.pop(name, None)
        else:
            held[name] = (claimant(name, wanted[0]), node_port(*wanted[1]))
            book.enter(*held[name])
        if judge:
            told.update((each, book.lost(each)) for each in book.settle())
    told.update((each, book.lost(each)) for each in book.settle())
    for name in "abcd":
        expected = tuple(_lost(name, held)) if name in held else ()
        assert book.lost(name) == expected
        assert told.get(name, ()) == expected


def _lost(name: str, held: dict[str, tuple[Claimant, Service]]) -> list[LostClaim]:
    """Straight from the rule: of all who claim it, the least (create revision, key)."""
    found = []
    for path, claim in claims(held[name][1]):
        winner = min(who for who, service in held.values() if claim in _all(service))
        if winner.service != name:
            found.append(LostClaim(path, claim, winner.key))
    return found


def _all(service: Service) -> set[Claim]:
    return {claim for _, claim in claims(service)}
