"""What the keys of a configuration must fulfil together, beyond each being right by itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from edgeproxy.address import LINK_LOCAL, LOOPBACK, MULTICAST, Network, is_ipv4
from edgeproxy.settings import Etcd, Proxy, Settings

# A shorter prefix would make most of the Internet, or of the site's ULA space, a local address of the host.
SHORTEST_SERVICE_PREFIX = {True: 8, False: 32}
# Room for the two node-port anchors and a few for external addresses under the Local policy.
LONGEST_ANCHOR_PREFIX = {True: 28, False: 124}


class Contradiction(msgspec.Struct, frozen=True):
    """A broken rule: the key to change, why, and all keys the rule looked at."""

    where: str
    message: str
    keys: tuple[str, ...]


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """Every broken rule."""
    yield from _endpoints(settings.etcd)
    yield from _companions(settings.etcd)
    yield from _service_networks(settings.proxy)
    yield from _anchors(settings.proxy.anchor_cidrs)
    proxy, health = settings.proxy, settings.health.listen
    if proxy.min_sync > proxy.resync:
        yield Contradiction(
            "proxy.min_sync",
            f"found {proxy.min_sync:g}s, expected at most proxy.resync ({proxy.resync:g}s): "
            "raise resync or lower min_sync",
            ("proxy.min_sync", "proxy.resync"),
        )
    if health is not None and health == settings.metrics.listen:
        yield Contradiction(
            "metrics.listen",
            f"{health} is health.listen already, expected another address or port",
            ("health.listen", "metrics.listen"),
        )


def _endpoints(etcd: Etcd) -> Iterator[Contradiction]:
    where = "etcd.endpoints"
    schemes = {endpoint.partition(":")[0] for endpoint in etcd.endpoints}
    if not schemes:
        yield Contradiction(where, "found an empty list, expected at least one URL", (where,))
    if len(schemes) > 1:
        message = "found http and https mixed, expected one of them for all endpoints"
        yield Contradiction(where, message, (where,))
    if schemes == {"http"}:
        for key in ("ca_file", "cert_file", "key_file"):
            if getattr(etcd, key) is not None:
                message = "needs https endpoints, found http: change etcd.endpoints or remove this key"
                yield Contradiction(f"etcd.{key}", message, (where, f"etcd.{key}"))


def _companions(etcd: Etcd) -> Iterator[Contradiction]:
    for pair in (("cert_file", "key_file"), ("username", "password_file")):
        for key, other in (pair, pair[::-1]):
            if getattr(etcd, key) is not None and getattr(etcd, other) is None:
                message = f"needs etcd.{other}, which is not set"
                yield Contradiction(f"etcd.{key}", message, (f"etcd.{key}", f"etcd.{other}"))


def _service_networks(proxy: Proxy) -> Iterator[Contradiction]:
    key = "proxy.service_cidrs"
    for index, network in enumerate(proxy.service_cidrs):
        where = f"{key}[{index}]"
        least = SHORTEST_SERVICE_PREFIX[is_ipv4(network.address)]
        special = next(
            (other for other in (*LOOPBACK, *LINK_LOCAL, *MULTICAST) if network.overlaps(other)), None
        )
        if network.prefix < least:
            message = f"{network} is too large, expected a prefix length of {least} or more"
            yield Contradiction(where, message, (key,))
        elif special:
            message = f"{network} overlaps {special}, expected unicast addresses of your own"
            yield Contradiction(where, message, (key,))
        for other in proxy.service_cidrs[:index]:
            if network.overlaps(other):
                message = f"{network} overlaps {other} of the same list, keep the larger one only"
                yield Contradiction(where, message, (key,))
        for anchor in proxy.anchor_cidrs:
            if network.overlaps(anchor):
                message = f"{network} overlaps {anchor} of proxy.anchor_cidrs, expected them apart"
                yield Contradiction(where, message, (key, "proxy.anchor_cidrs"))


def _anchors(networks: tuple[Network, ...]) -> Iterator[Contradiction]:
    where = "proxy.anchor_cidrs"
    for ipv4, family, example in ((True, "IPv4", "169.254.96.0/20"), (False, "IPv6", "a /64 of fd00::/8")):
        mine = [network for network in networks if is_ipv4(network.address) is ipv4]
        longest = LONGEST_ANCHOR_PREFIX[ipv4]
        if len(mine) != 1:
            message = f"found {len(mine)} {family} networks, expected exactly one, such as {example}"
            yield Contradiction(where, message, (where,))
        elif mine[0].prefix > longest:
            message = f"{mine[0]} is too small, expected a prefix length of {longest} or less"
            yield Contradiction(where, message, (where,))
