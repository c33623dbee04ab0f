"""The IPVS codec against recorded datagrams, and against itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.address import Address, parse
from edgeproxy.kernel import ipvs_codec as codec
from edgeproxy.kernel import ipvs_layout as layout
from edgeproxy.kernel import netlink
from edgeproxy.kernel.ipvs_codec import Command, DestinationField, Field, ServiceField
from edgeproxy.kernel.ipvs_entries import (
    AF_INET,
    AF_INET6,
    WHOLE_CLIENT_6,
    DestinationEntry,
    Forwarding,
    Information,
    ServiceFlag,
    Statistics,
    Timeouts,
    VirtualServerEntry,
)
from edgeproxy.kernel.ipvs_operations import (
    AddReal,
    AddVirtual,
    Operation,
    RemoveReal,
    RemoveVirtual,
    encode,
)
from edgeproxy.kernel.netlink import Answer, MalformedError
from edgeproxy.model import Frontend, Protocol, RealServer, VirtualServer

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="recorded on a little endian machine")

_LINES = Path(__file__).with_name("ipvs_recorded.txt").read_text().splitlines()
RECORDED = {
    (source, name): bytes.fromhex(data)
    for source, name, data in (line.split() for line in _LINES if not line.startswith("#"))
}

WEB = Frontend(parse("10.96.0.10"), Protocol.TCP, 8000)
SIX = Frontend(parse("fd00::10"), Protocol.TCP, 443)


def payloads(name: str) -> list[bytes]:
    return [message.payload for message in netlink.messages(RECORDED["answer", name])]


# -- answers of the kernel ---------------------------------------------------------------------


def test_virtual_servers_the_kernel_listed() -> None:
    found = [codec.decode_service(payload) for payload in payloads("services")]
    hashed, persistent = ServiceFlag.HASHED, ServiceFlag.PERSISTENT
    both = ServiceFlag.SCHED1 | ServiceFlag.SCHED2
    assert found == [
        VirtualServerEntry(
            AF_INET6,
            6,
            parse("fd00::10"),
            443,
            "mh",
            flags=hashed | persistent | both,
            timeout=60,
            netmask=64,
        ),
        VirtualServerEntry(
            AF_INET,
            17,
            parse("10.96.0.12"),
            5060,
            "rr",
            flags=hashed | persistent | ServiceFlag.ONE_PACKET,
            timeout=300,
            persistence_engine="sip",
        ),
        VirtualServerEntry(
            AF_INET,
            17,
            parse("10.96.0.11"),
            53,
            "rr",
            flags=hashed | persistent,
            timeout=10800,
            netmask=0xFFFFFF00,
        ),
        VirtualServerEntry(AF_INET, 6, parse("10.96.0.10"), 8000, "wrr", flags=hashed),
        VirtualServerEntry(AF_INET, 0, Address(b""), 0, "sh", fwmark=7, flags=hashed | ServiceFlag.SCHED2),
        VirtualServerEntry(AF_INET6, 0, Address(b""), 0, "lc", fwmark=8, flags=hashed, netmask=128),
    ]


DESTINATIONS = [
    DestinationEntry(
        parse("10.1.1.4"), 8000, Forwarding.TUNNEL, 7, tunnel_type=1, tunnel_port=6080, tunnel_flags=0
    ),
    DestinationEntry(parse("10.1.1.3"), 8000, Forwarding.DIRECT, 0),
    DestinationEntry(parse("10.1.1.2"), 80, Forwarding.MASQUERADE, 3, upper=100, lower=50),
]


def test_destinations_the_kernel_listed() -> None:
    assert [codec.decode_destination(payload, 0) for payload in payloads("destinations4")] == DESTINATIONS
    (six,) = [codec.decode_destination(payload, 0) for payload in payloads("destinations6")]
    assert six == DestinationEntry(parse("fd00::2"), 8443, Forwarding.MASQUERADE, 5)


@pytest.mark.parametrize("name", ["destinations4", "destinations6", "destinations-of-mark"])
def test_a_datagram_decodes_at_once_as_message_by_message(name: str) -> None:
    datagram = RECORDED["answer", name]
    first = next(netlink.messages(datagram))
    at_once = layout.decode_destinations(datagram, first.type, first.sequence)
    assert at_once == [codec.decode_destination(payload, 0) for payload in payloads(name)]
    assert at_once


def test_a_datagram_of_anything_else_is_left_to_the_general_way() -> None:
    datagram = RECORDED["answer", "destinations4"]
    first = next(netlink.messages(datagram))
    kind, sequence = first.type, first.sequence
    assert layout.decode_destinations(datagram, kind, sequence + 1) is None
    assert layout.decode_destinations(datagram, kind + 1, sequence) is None
    assert layout.decode_destinations(b"", kind, sequence) is None
    assert layout.decode_destinations(RECORDED["answer", "empty"], kind, sequence) is None
    assert layout.decode_destinations(datagram + RECORDED["answer", "empty"], kind, sequence) is None
    assert layout.decode_destinations(RECORDED["answer", "services"], kind, 2) is None
    swapped = datagram.replace(
        netlink.u32(DestinationField.L_THRESH, 50), netlink.u32(DestinationField.U_THRESH, 50)
    )
    assert swapped != datagram
    assert layout.decode_destinations(swapped, kind, sequence) is None


def test_statistics_are_decoded_when_asked_for() -> None:
    (payload,) = payloads("destinations6")
    assert codec.decode_destination(payload, 0, statistics=True).statistics == Statistics()
    assert codec.decode_service(payloads("services")[0], statistics=True).statistics == Statistics()


@pytest.mark.parametrize("field", [DestinationField.STATS, DestinationField.STATS64])
def test_statistics_of_both_widths(field: DestinationField) -> None:
    width = netlink.u64 if field is DestinationField.STATS64 else netlink.u32
    counters = [width(kind, kind * 1000) for kind in range(1, 11)]
    entry = codec.encode_destination(DestinationEntry(parse("10.1.1.2"), 80))
    nested = netlink.nested(Field.DEST, entry[4:], netlink.nested(field, *counters))
    found = codec.decode_destination(codec.request(Command.NEW_DEST, nested), AF_INET, statistics=True)
    assert found.statistics == Statistics(1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000)


def test_timeouts_information_and_refusals() -> None:
    assert codec.decode_timeouts(payloads("timeouts")[0]) == Timeouts(901, 121, 301)
    assert codec.decode_information(payloads("information")[0]) == Information("1.2.1", 4096)
    (refused,) = netlink.messages(RECORDED["answer", "no-such-server"])
    assert netlink.answer(refused) == Answer(3)
    (refused,) = netlink.messages(RECORDED["answer", "bad-attribute"])
    assert netlink.answer(refused) == Answer(34, "Attribute failed policy validation", 20)


def test_a_message_without_what_it_must_have_is_malformed() -> None:
    with pytest.raises(MalformedError, match=r"Field\.SERVICE"):
        codec.decode_service(codec.request(Command.NEW_SERVICE))
    with pytest.raises(MalformedError, match=r"DestinationField\.ADDR"):
        codec.decode_destination(codec.request(Command.NEW_DEST, netlink.nested(Field.DEST)), AF_INET)
    short = netlink.nested(
        Field.DEST,
        netlink.attribute(DestinationField.ADDR, b"\x0a\x01"),
        netlink.be16(DestinationField.PORT, 1),
    )
    with pytest.raises(MalformedError, match="address of 2 bytes"):
        codec.decode_destination(codec.request(Command.NEW_DEST, short), AF_INET)


# -- requests, against those of ipvsadm --------------------------------------------------------


def tree(payload: bytes) -> dict[str, bytes]:
    """What a request says, without what may differ: padding of IPv4 addresses, the mask of flags."""
    said = {"command": payload[:1]}
    for kind, nested in netlink.walk(payload, 4):
        service = kind == Field.SERVICE
        fields = {
            (ServiceField(field) if service else DestinationField(field)).name: value
            for field, value in netlink.walk(nested)
        }
        if netlink.number(fields["AF" if service else "ADDR_FAMILY"]) == AF_INET and "ADDR" in fields:
            fields["ADDR"] = fields["ADDR"][:4]
        if "FLAGS" in fields:
            fields["FLAGS"] = fields["FLAGS"][:4]
        said |= {f"{Field(kind).name}.{name}": value for name, value in fields.items()}
    return said


REQUESTS: dict[str, Operation] = {
    "add-server4": AddVirtual(VirtualServer(WEB, "wrr")),
    "add-server6": AddVirtual(VirtualServer(SIX, "mh", 60, 0x18)),
    "add-real4": AddReal(WEB, RealServer(parse("10.1.1.2"), 80, 3)),
    "add-real6": AddReal(SIX, RealServer(parse("fd00::2"), 8443, 5)),
    "remove-real4": RemoveReal(WEB, parse("10.1.1.2"), 80),
    "remove-server4": RemoveVirtual(WEB),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_say_what_ipvsadm_says(name: str) -> None:
    ours, theirs = tree(encode(REQUESTS[name])), tree(RECORDED["ipvsadm", name])
    extra = theirs.keys() - ours.keys()
    not_read = {"SERVICE.SCHED_NAME", "SERVICE.FLAGS", "SERVICE.TIMEOUT", "SERVICE.NETMASK"}
    tunnel = {"DEST.TUN_TYPE", "DEST.TUN_PORT", "DEST.TUN_FLAGS"}
    # ipvsadm sends a full description even where only the name is read, and tunnel attributes of no tunnel.
    if name.startswith("add-server"):
        assert not extra
    elif name.startswith("add-real"):
        assert extra == not_read | tunnel
    else:
        assert extra <= not_read | tunnel | {"DEST." + field.name for field in DestinationField}
    assert ours.items() <= theirs.items()


def test_a_firewall_mark_is_named_as_ipvsadm_names_it() -> None:
    entry = VirtualServerEntry(AF_INET, 0, Address(b""), 0, "rr", fwmark=7)
    request = codec.request(Command.NEW_SERVICE, codec.encode_service(entry))
    assert tree(request) == tree(RECORDED["ipvsadm", "add-mark"])


def test_hashed_is_never_written() -> None:
    # NEW_SERVICE with this flag makes a server that no lookup finds (ip_vs_svc_hash).
    entry = VirtualServerEntry(AF_INET, 6, parse("10.96.0.10"), 80, "rr", flags=0xFF)
    (fields,) = (netlink.attributes(value) for _, value in netlink.walk(codec.encode_service(entry)))
    flags, mask = fields[ServiceField.FLAGS][:4], fields[ServiceField.FLAGS][4:]
    assert netlink.number(flags) == 0xFD
    assert netlink.number(mask) == 0xFFFFFFFD


def test_timeouts_that_are_zero_are_left_out() -> None:
    assert codec.encode_timeouts(Timeouts(tcp=900)) == bytes.fromhex("0c010000 0800040084030000")


# -- round trips -------------------------------------------------------------------------------

addresses4 = st.binary(min_size=4, max_size=4).map(Address)
addresses6 = st.binary(min_size=16, max_size=16).map(Address)
ports = st.integers(0, 65535)
numbers = st.integers(0, 2**32 - 1)
names = st.text("abcdefghijklmnopqrstuvwxyz_", max_size=15)


@st.composite
def servers(draw: st.DrawFn) -> VirtualServerEntry:
    family = draw(st.sampled_from([AF_INET, AF_INET6]))
    fwmark = draw(st.one_of(st.just(0), st.integers(1, 2**32 - 1)))
    return VirtualServerEntry(
        family,
        0 if fwmark else draw(st.integers(1, 255)),
        Address(b"") if fwmark else draw(addresses4 if family == AF_INET else addresses6),
        0 if fwmark else draw(ports),
        draw(names),
        fwmark,
        draw(numbers) & ~int(ServiceFlag.HASHED),
        draw(numbers),
        draw(numbers if family == AF_INET else st.integers(1, WHOLE_CLIENT_6)),
        draw(names),
    )


def test_virtual_servers_of_the_current_layout_are_decoded_alike() -> None:
    layout._common.cache_clear()
    for payload in payloads("services") * 2:
        assert layout.decode_service(payload) == codec.decode_service(payload)
    assert layout._common.cache_info().hits, "the kernel writes another layout"


@given(servers(), st.sampled_from((0, netlink.NESTED)), st.booleans())
def test_any_virtual_server_is_decoded_alike(entry: VirtualServerEntry, flag: int, told: bool) -> None:
    written = codec.encode_service(entry)[4:]
    statistics = netlink.attribute(ServiceField.STATS | flag, bytes(40)) if told else b""
    payload = codec.request(Command.NEW_SERVICE, netlink.attribute(Field.SERVICE, written + statistics))
    for _ in range(2):
        assert layout.decode_service(payload) == codec.decode_service(payload)
        payload = payload[:28] + bytes(reversed(payload[28:32])) + payload[32:]
    for length in range(4, len(payload), 7):
        assert _outcome(layout.decode_service, payload[:length]) == _outcome(
            codec.decode_service, payload[:length]
        )


def _outcome(decode: Callable[[bytes], VirtualServerEntry], payload: bytes) -> object:
    try:
        return decode(payload)
    except MalformedError:
        return MalformedError


@given(servers())
def test_virtual_servers_round_trip(entry: VirtualServerEntry) -> None:
    assert codec.decode_service(codec.request(Command.NEW_SERVICE, codec.encode_service(entry))) == entry


@given(
    st.builds(
        DestinationEntry,
        address=st.one_of(addresses4, addresses6),
        port=ports,
        forwarding=st.sampled_from(Forwarding),
        weight=numbers,
        upper=numbers,
        lower=numbers,
        active=st.just(0),
        inactive=st.just(0),
        persistent=st.just(0),
        tunnel_type=st.integers(0, 2),
        tunnel_port=ports,
        tunnel_flags=st.integers(0, 65535),
        statistics=st.none(),
    )
)
def test_destinations_round_trip(entry: DestinationEntry) -> None:
    payload = codec.request(Command.NEW_DEST, codec.encode_destination(entry))
    assert codec.decode_destination(payload, AF_INET) == entry


@given(
    st.builds(
        RealServer, address=st.one_of(addresses4, addresses6), port=ports, weight=st.integers(0, 2**31 - 1)
    )
)
def test_the_short_way_to_encode_real_servers_says_the_same(real: RealServer) -> None:
    assert codec.encode_real_server(real) == codec.encode_destination(DestinationEntry.of(real))


@given(
    st.builds(
        VirtualServer,
        frontend=st.builds(
            Frontend,
            address=st.one_of(addresses4, addresses6),
            protocol=st.sampled_from(Protocol),
            port=ports,
        ),
        scheduler=names,
        timeout=st.integers(0, 86400),
        flags=st.sampled_from([0, 0x08, 0x10, 0x18, 0x38]),
    )
)
def test_what_the_model_wants_is_what_it_reads_back(server: VirtualServer) -> None:
    written = codec.encode_service(VirtualServerEntry.of(server))
    found = codec.decode_service(codec.request(Command.NEW_SERVICE, written))
    assert found.virtual_server == server
    assert found.plain


# -- translation -------------------------------------------------------------------------------


def test_what_the_model_cannot_say_is_not_plain() -> None:
    plain = VirtualServerEntry.of(VirtualServer(WEB, "wrr", 300))
    assert plain.plain
    assert not codec.decode_service(payloads("services")[2]).plain  # persistence per /24
    assert not codec.decode_service(payloads("services")[1]).plain  # persistence engine
    assert not codec.decode_service(payloads("services")[0]).plain  # persistence per /64
    assert [entry.plain for entry in DESTINATIONS] == [False, False, False]
    assert DestinationEntry.of(RealServer(parse("10.1.1.2"), 80, 3)).plain


def test_an_unwanted_flag_shows_in_the_model() -> None:
    entry = codec.decode_service(payloads("services")[1])
    assert entry.virtual_server == VirtualServer(
        Frontend(parse("10.96.0.12"), Protocol.UDP, 5060), "rr", 300, ServiceFlag.ONE_PACKET
    )


def test_a_timeout_without_persistence_is_none() -> None:
    entry = VirtualServerEntry(AF_INET, 6, WEB.address, WEB.port, "rr", flags=ServiceFlag.HASHED, timeout=300)
    assert entry.virtual_server == VirtualServer(WEB, "rr")


@pytest.mark.parametrize(
    "entry",
    [
        VirtualServerEntry(AF_INET, 0, Address(b""), 0, "rr", fwmark=7),
        VirtualServerEntry(AF_INET, 50, parse("10.96.0.10"), 0, "rr"),
    ],
    ids=["firewall mark", "ESP"],
)
def test_what_is_no_frontend(entry: VirtualServerEntry) -> None:
    assert entry.frontend is None
    assert entry.virtual_server is None
