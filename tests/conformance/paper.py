"""A host on paper: the real engine on a kernel in memory, asked in the words of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgeproxy.address import Network, parse, parse_network, text, with_port
from edgeproxy.model import Element, Finding, Frontend, Protocol, SetName
from edgeproxy.settings import Node, Proxy, Settings
from tests.unit.site import Site

FRONT, INSIDE = "169.254.96.1", "169.254.96.2"
"""The anchors that node ports are served on: for external clients, and for those of this host."""
CIDRS = (parse_network("10.96.0.0/16"), parse_network("fd00:96::/112"))
WEB = "10.96.0.10"
Record = Mapping[str, object] | str


class PaperHost(Site):
    """Host `host0` in zone `east`, with the addresses 10.1.0.11 and fd00:1::11."""

    def __init__(self, *, name: str = "host0", zone: str = "east", local_cidrs: tuple[str, ...] = ()) -> None:
        networks: tuple[Network, ...] = tuple(parse_network(cidr) for cidr in local_cidrs)
        super().__init__(
            Settings(node=Node(name=name, zone=zone), proxy=Proxy(service_cidrs=CIDRS, local_cidrs=networks))
        )

    def serve(self, spec: Mapping[str, object], *endpoints: Record, name: str = "web") -> None:
        """Writes one service; its endpoints are called 0, 1, 2 and so on. Former ones are deleted."""
        former = {key.decode().removeprefix("/services/") for key in self.records}
        records: dict[str, Record | None] = {
            key: None for key in former if key == name or key.startswith(f"{name}/")
        }
        records[name] = spec
        records |= {f"{name}/endpoints/{number}": record for number, record in enumerate(endpoints)}
        self.put(records)

    def servers(self) -> set[str]:
        """The virtual servers: `tcp/10.96.0.10:80`."""
        return {str(frontend) for frontend in self.kernel.servers}

    def backends(self, address: str, port: int = 80, protocol: Protocol = Protocol.TCP) -> list[str]:
        """The real servers behind a virtual server that take new connections: `10.1.1.1:80`."""
        held = self.kernel.reals[Frontend(parse(address), protocol, port)]
        return sorted(with_port(*socket) for socket, entry in held.items() if entry.weight)

    def elements(self, name: SetName) -> list[Element]:
        """What one of our sets holds."""
        return [element for element, _ in self.kernel.elements(name).values()]

    def verdicts(self) -> dict[str, str]:
        """The traffic class of everything that is called by address: `10.96.0.10:80` to `cluster_ip4`."""
        return {
            str(Frontend(*element.key)).partition("/")[2]: element.verdict  # type: ignore[arg-type]
            for name in (SetName.FRONTENDS4, SetName.FRONTENDS6)
            for element in self.elements(name)
        }

    def node_ports(self) -> set[int | str]:
        """The node ports that are open, of either family."""
        return {
            field
            for name in (SetName.NODE_PORTS4, SetName.NODE_PORTS6)
            for element in self.elements(name)
            for field in element.key
            if isinstance(field, int) and not isinstance(field, Protocol)
        }

    def findings(self, key: str) -> list[Finding]:
        """What is said about a record."""
        return [finding for finding in self.reconciler.findings() if finding.key == f"/services/{key}"]

    def writes(self) -> int:
        """How often the kernel was written to so far."""
        return self.kernel.writes


def cluster_ip(**fields: object) -> dict[str, object]:
    """A service with cluster IP 10.96.0.10, port 80."""
    return {"clusterIP": WEB, "ports": [{"port": 80}], **fields}


def at(number: int, **fields: object) -> dict[str, object]:
    """An endpoint 10.1.1.`number`."""
    return {"address": f"10.1.1.{number}", **fields}


def sockets(*numbers: int, port: int = 80) -> list[str]:
    """The real servers of endpoints made by :func:`at`."""
    return sorted(f"10.1.1.{number}:{port}" for number in numbers)


def addresses(elements: list[Element]) -> set[str]:
    """The first address of each element."""
    return {text(field) for element in elements for field in element.key[:1] if isinstance(field, bytes)}


def changed(settings: Settings, **fields: object) -> Settings:
    """Settings with other `[proxy]` keys."""
    return msgspec.structs.replace(settings, proxy=msgspec.structs.replace(settings.proxy, **fields))
