"""The frame of our nft tables: sets, chains and rules, everything but the elements.

Theory of operation
-------------------
A packet that opens a connection is classified once, in the nat hooks, by one look-up of
(destination, protocol, port) in the verdict map `frontends*`; a node port by (protocol, port) in
`node_ports*`. The chain the verdict names decides about masquerading (a bit in the conntrack
mark), about silence, and *finishes* destination NAT: an identity DNAT for service addresses, a DNAT
to an anchor address with the port unchanged for node ports. An identity DNAT is needed because an
`accept` does not keep a later nat chain (Docker's `-p`) from translating the packet again.

IPVS then takes the packet in LOCAL_IN (priority 98/99) or LOCAL_OUT (-99) and balances it. What
it leaves behind for an address of ours meets `guard` (input, 110), which refuses it.

Silence and refusals that must come before IPVS live in the nat chains (first packet of a flow) and,
for the anchors, which nobody may address directly, in filter chains at -150.

The map `frontends*` is also the register of ownership: an IPVS virtual server is ours exactly if
it is in there, or on an anchor. Elements are written by `kernel.nft`, never from here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from edgeproxy.address import LOOPBACK, Address, Network, is_ipv4, parse_network, text
from edgeproxy.kernel.nft_sets import TABLE, Family
from edgeproxy.settings import Masquerade, PortRange

NAT_PRIORITY = -110
"""Ten before `dstnat`, so that ours is the first word on what we serve."""
DIRECT_PRIORITY = -150
"""After conntrack (-200), before every nat hook: sees what the client really addressed."""
GUARD_PRIORITY = 110
"""After IPVS in LOCAL_IN (98 and 99) and after nat (100)."""


class Chain(enum.StrEnum):
    """Traffic classes: the chains a verdict map sends to, without the family's digit.

    *silent* means that endpoints exist, but none here, under a policy that keeps traffic here.
    *ranged* means that only listed sources may open connections.
    """

    CLUSTER_IP = "cluster_ip"
    CLUSTER_IP_SILENT = "cluster_ip_silent"
    EXTERNAL_CLUSTER = "external_cluster"
    EXTERNAL_LOCAL = "external_local"
    EXTERNAL_SILENT = "external_silent"
    RANGED_CLUSTER = "ranged_cluster"
    RANGED_LOCAL = "ranged_local"
    RANGED_SILENT = "ranged_silent"
    NODE_PORT_CLUSTER = "node_port_cluster"
    NODE_PORT_LOCAL = "node_port_local"
    NODE_PORT_SILENT = "node_port_silent"

    def of(self, address: Address) -> str:
        """The chain's name for the family of `address`: `cluster_ip4`."""
        return f"{self.value}{4 if is_ipv4(address) else 6}"


class Frame(msgspec.Struct, frozen=True):
    """All that the rules depend on; two equal frames render the same script.

    node_port_addresses: host addresses that answer node ports; a family without any answers on all.
    """

    service_cidrs: tuple[Network, ...]
    local_cidrs: tuple[Network, ...]
    anchor_cidrs: tuple[Network, ...]
    node_port_addresses: tuple[Network, ...]
    masquerade: Masquerade
    mark_bit: int
    node_port_range: PortRange
    answer_arp: bool
    accept_marked: bool
    """Whether packets that open a flow carry the mark bit, for `kernel.iptables`."""


def anchor(cidr: Network, index: int) -> Address:
    """The `index`-th address of an anchor CIDR; 1 and 2 are the node ports' (see `NodePortAnchor`)."""
    return Address((int.from_bytes(cidr.address) + index).to_bytes(len(cidr.address)))


class NodePortAnchor(enum.IntEnum):
    """Index of the two node-port anchors inside the anchor CIDR of a family.

    FRONT serves what external clients get. INSIDE serves all endpoints to host processes and local
    workloads where the policy is Local.
    """

    FRONT = 1
    INSIDE = 2


def masquerade_ports(node_ports: PortRange) -> tuple[int, int]:
    """The wider of the two port ranges beside the node ports, privileged ports left out.

    A masqueraded flow whose source port were a node port could lose its replies to that node port
    (kubernetes/kubernetes#139276).
    """
    below, above = (1024, node_ports.first - 1), (node_ports.last + 1, 65535)
    return max(below, above, key=lambda ports: ports[1] - ports[0])


def render(frame: Frame) -> str:
    """The script for `nft -f -`: makes or renews both tables in one transaction, elements kept."""
    return "\n".join((*_inet_table(frame), *_arp_table(frame), ""))


def remove(family: Family) -> str:
    """The script that takes our table of a family away."""
    return f"delete table {family.word} {TABLE}\n"


def _inet_table(frame: Frame) -> Iterator[str]:
    yield f"add table inet {TABLE}"
    for digit in (4, 6):
        yield from _sets(digit)
        yield from _constants(frame, digit)
    chains = dict(_base_chains(frame))
    for digit in (4, 6):
        chains |= _classes(frame, digit)
    for name, (hook, _) in chains.items():
        yield f"add chain inet {TABLE} {name} {hook}".rstrip()
        yield f"flush chain inet {TABLE} {name}"
    for name, (_, rules) in chains.items():
        for rule in rules:
            yield f"add rule inet {TABLE} {name} {rule}"


def _sets(digit: int) -> Iterator[str]:
    """Sets and maps whose elements come from records (`model.SetName`)."""
    ip = f"ipv{digit}_addr"
    frontend = f"{ip} . inet_proto . inet_service"
    for kind, name, definition in (
        ("map", "frontends", f"type {frontend} : verdict;"),
        ("map", "node_ports", "type inet_proto . inet_service : verdict;"),
        ("map", "detours", f"type {frontend} : {ip};"),
        ("set", "addresses", f"type {ip};"),
        ("set", "hairpin", f"type {ip} . {ip};"),
        ("set", "sources", f"type {frontend} . {ip}; flags interval;"),
        ("set", "drains", f"type {frontend} . {ip} . inet_service; flags timeout;"),
    ):
        yield f"add {kind} inet {TABLE} {name}{digit} {{ {definition} }}"


def _constants(frame: Frame, digit: int) -> Iterator[str]:
    """Sets whose elements come from the configuration; written whole with the frame."""
    ip = f"ipv{digit}_addr"
    for name, networks in (
        ("service_cidrs", frame.service_cidrs),
        ("local_cidrs", frame.local_cidrs),
        ("anchors", frame.anchor_cidrs),
        ("reserved", (*frame.service_cidrs, *frame.anchor_cidrs, *LOOPBACK, parse_network("fe80::/10"))),
    ):
        yield f"add set inet {TABLE} {name}{digit} {{ type {ip}; flags interval; auto-merge; }}"
        yield from _refill("set", f"inet {TABLE} {name}{digit}", _of_family(networks, digit))
    everything = "0.0.0.0/0" if digit == 4 else "::/0"
    yield f"add map inet {TABLE} identity{digit} {{ type {ip} : interval {ip}; flags interval; }}"
    yield from _refill("map", f"inet {TABLE} identity{digit}", [f"{everything} : {everything}"])


def _base_chains(frame: Frame) -> Iterator[tuple[str, tuple[str, list[str]]]]:
    nat = "type nat hook {} priority {}; policy accept;"
    filters = "type filter hook {} priority {}; policy accept;"
    balanced = "meta l4proto { tcp, udp, sctp }"
    mark = _mark(frame)
    low, high = masquerade_ports(frame.node_port_range)
    yield "nat_prerouting", (_hook(nat, "prerouting", NAT_PRIORITY), [f"{balanced} jump dispatch"])
    yield "nat_output", (_hook(nat, "output", NAT_PRIORITY), [f"{balanced} jump dispatch"])
    yield "dispatch", ("", [*_dispatch(frame, 4), *_dispatch(frame, 6)])
    yield (
        "nat_postrouting",
        (
            _hook(nat, "postrouting", 90),
            [
                f"ct mark and {mark} == {mark} goto masquerading",
                "ip saddr . ip daddr @hairpin4 goto masquerading",
                "ip6 saddr . ip6 daddr @hairpin6 goto masquerading",
            ],
        ),
    )
    yield "masquerading", ("", [f"{balanced} masquerade to :{low}-{high} fully-random", "masquerade"])
    direct = ["ip daddr @anchors4 drop", "ip6 daddr @anchors6 drop"]
    yield "direct_prerouting", (_hook(filters, "prerouting", DIRECT_PRIORITY), direct)
    yield "direct_output", (_hook(filters, "output", DIRECT_PRIORITY), direct)
    guard = [
        rule
        for digit, ip in ((4, "ip"), (6, "ip6"))
        for rule in (
            f"{ip} daddr @addresses{digit} goto refuse",
            f"{ip} daddr @anchors{digit} goto refuse",
            f"{ip} daddr @service_cidrs{digit} drop",
        )
    ]
    yield "guard", (_hook(filters, "input", GUARD_PRIORITY), guard)
    yield (
        "refuse",
        (
            "",
            [
                "icmp type echo-request accept",
                "icmpv6 type echo-request accept",
                "meta l4proto tcp reject with tcp reset",
                "reject with icmpx type port-unreachable",
            ],
        ),
    )


def _dispatch(frame: Frame, digit: int) -> Iterator[str]:
    ip = "ip" if digit == 4 else "ip6"
    yield f"{ip} daddr . meta l4proto . th dport vmap @frontends{digit}"
    chosen = _of_family(frame.node_port_addresses, digit)
    only = f"{ip} daddr {{ {', '.join(chosen)} }} " if chosen else ""
    yield (
        f"{ip} daddr != @reserved{digit} {ip} daddr != @addresses{digit} {only}"
        f"fib daddr type local meta l4proto . th dport vmap @node_ports{digit}"
    )


def _classes(frame: Frame, digit: int) -> dict[str, tuple[str, list[str]]]:
    """The chains of `Chain` for one family.

    Client classes: a host process (its source is one of the host's addresses), a local workload
    (source in `local_cidrs`), anybody else.
    """
    ip = "ip" if digit == 4 else "ip6"
    set_mark = f"ct mark set ct mark or {_mark(frame)}"
    host, workload = "fib saddr type local", f"{ip} saddr @local_cidrs{digit}"
    finish = f"goto finish{digit}"
    cidr = next(n for n in frame.anchor_cidrs if is_ipv4(n.address) == (digit == 4))
    front, inside = (f"dnat {ip} to {text(anchor(cidr, index))}" for index in NodePortAnchor)
    detour = f"dnat {ip} to {ip} daddr . meta l4proto . th dport map @detours{digit}"
    listed = f"{ip} daddr . meta l4proto . th dport . {ip} saddr @sources{digit}"
    masqueraded_cluster_ip = {
        Masquerade.REMOTE: [f"{host} {finish}", f"{workload} {finish}", set_mark],
        Masquerade.ALL: [set_mark],
        Masquerade.NONE: [],
    }[frame.masquerade]
    short_cut = [f"{host} {set_mark} {detour}", f"{workload} {detour}"]
    rules: dict[Chain, list[str]] = {
        Chain.CLUSTER_IP: [*masqueraded_cluster_ip, finish],
        Chain.CLUSTER_IP_SILENT: ["drop"],
        Chain.EXTERNAL_CLUSTER: [set_mark, finish],
        Chain.EXTERNAL_LOCAL: [*short_cut, finish],
        Chain.EXTERNAL_SILENT: [*short_cut, "drop"],
        Chain.RANGED_CLUSTER: [f"{listed} goto external_cluster{digit}", "drop"],
        Chain.RANGED_LOCAL: [f"{listed} goto external_local{digit}", "drop"],
        Chain.RANGED_SILENT: [f"{listed} goto external_silent{digit}", "drop"],
        Chain.NODE_PORT_CLUSTER: [set_mark, front],
        Chain.NODE_PORT_LOCAL: [f"{host} {set_mark} {inside}", f"{workload} {inside}", front],
        Chain.NODE_PORT_SILENT: [f"{host} {set_mark} {inside}", f"{workload} {inside}", "drop"],
    }
    everywhere = f"dnat {ip} prefix to {ip} daddr map @identity{digit}"
    if frame.accept_marked:
        opened = f"meta mark set meta mark or {_mark(frame)}"
        rules = {chain: [opened, *body] for chain, body in rules.items()}
    chains: dict[str, tuple[str, list[str]]] = {f"finish{digit}": ("", [everywhere])}
    return chains | {f"{name.value}{digit}": ("", body) for name, body in rules.items()}


def _arp_table(frame: Frame) -> Iterator[str]:
    """Keeps the host from answering ARP for addresses it serves without owning them."""
    unanswered = [] if frame.answer_arp else _of_family((*frame.service_cidrs, *frame.anchor_cidrs), 4)
    yield f"add table arp {TABLE}"
    yield f"add set arp {TABLE} unanswered {{ type ipv4_addr; }}"
    yield f"add set arp {TABLE} networks {{ type ipv4_addr; flags interval; auto-merge; }}"
    yield from _refill("set", f"arp {TABLE} networks", unanswered)
    yield f"add chain arp {TABLE} input {{ type filter hook input priority 0; policy accept; }}"
    yield f"flush chain arp {TABLE} input"
    for name in ("networks", "unanswered"):
        yield f"add rule arp {TABLE} input arp operation request arp daddr ip @{name} drop"


def _mark(frame: Frame) -> str:
    return f"{1 << frame.mark_bit:#x}"


def _hook(template: str, hook: str, priority: int) -> str:
    return "{ " + template.format(hook, priority) + " }"


def _of_family(networks: tuple[Network, ...], digit: int) -> list[str]:
    return [str(network) for network in networks if is_ipv4(network.address) == (digit == 4)]


def _refill(kind: str, name: str, elements: list[str]) -> Iterator[str]:
    yield f"flush {kind} {name}"
    if elements:
        yield f"add element {name} {{ {', '.join(elements)} }}"
