"""Addresses and networks."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.address import (
    Address,
    is_ipv4,
    parse,
    parse_network,
    special_kind,
    text,
    with_port,
    within,
)

ADDRESSES = st.ip_addresses()
NETWORKS = st.builds(
    lambda address, cut: ipaddress.ip_network((address, cut % (address.max_prefixlen + 1)), strict=False),
    ADDRESSES,
    st.integers(0, 128),
)


@given(ADDRESSES)
def test_text_and_packed_form_agree_with_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    packed = parse(str(address))
    assert packed == address.packed
    assert ipaddress.ip_address(text(packed)) == address
    assert is_ipv4(packed) == (address.version == 4)


@given(ADDRESSES, NETWORKS, NETWORKS)
def test_networks_agree_with_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    one: ipaddress.IPv4Network | ipaddress.IPv6Network,
    other: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> None:
    network = parse_network(str(one))
    assert (network.address, network.prefix) == (one.network_address.packed, one.prefixlen)
    assert (Address(address.packed) in network) == (address in one)
    same_family = one.version == other.version
    assert network.overlaps(parse_network(str(other))) == (same_family and one.overlaps(other))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "10.1.1",
        "10.1.1.256",
        "010.1.1.1",
        "10.1.1.1/8",
        " 10.1.1.1",
        "10.1.1.1\0",
        "fe80::1%eth0",
        "::g",
        "é",
    ],
)
def test_what_is_no_address_is_refused_by_name(value: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        parse(value)


@pytest.mark.parametrize("value", ["", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "fd00::/129", "10.0.0.0/٣"])
def test_what_is_no_network_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="is not a CIDR"):
        parse_network(value)


def test_a_bare_address_is_a_network_of_its_own_and_host_bits_are_cleared() -> None:
    assert str(parse_network("10.1.2.3")) == "10.1.2.3/32"
    assert str(parse_network("10.1.2.3/16")) == "10.1.0.0/16"
    assert str(parse_network("fd00::1/0")) == "::/0"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("127.1.2.3", "loopback"),
        ("::1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("febf::1", "link-local"),
        ("239.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("10.0.0.1", None),
        ("fd00::1", None),
        ("fec0::1", None),
    ],
)
def test_special_addresses(value: str, kind: str | None) -> None:
    assert special_kind(parse(value)) == kind


def test_ports_follow_addresses_as_in_a_url() -> None:
    assert with_port(parse("10.1.1.2"), 80) == "10.1.1.2:80"
    assert with_port(parse("fd00::2"), 80) == "[fd00::2]:80"


@given(st.lists(NETWORKS, max_size=4), ADDRESSES)
def test_to_lie_within_networks_is_to_lie_in_one_of_them(
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network],
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    inside = within(tuple(parse_network(str(network)) for network in networks))
    edges = [edge for network in networks for edge in (network[0], network[-1])]
    for each in (address, *edges):
        assert inside(Address(each.packed)) == any(each in network for network in networks)
