"""The made-up records every case works on: cluster IPs with endpoints that no machine has.

Each peer gets them in its own form; the virtual servers and real servers they lead to are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address

import msgspec

from edgeproxy.address import Address
from edgeproxy.model import Frontend, Protocol

SERVICE_CIDR = "10.96.0.0/16"
PREFIX = "/services/"
PORT, BACKEND_PORT = 80, 8080
_FIRST_SERVICE = int(IPv4Address("10.96.0.1"))
_FIRST_ENDPOINT = int(IPv4Address("10.128.0.1"))
_FIRST_SPARE = int(IPv4Address("10.127.0.1"))
NODE_PORT_ANCHOR = IPv4Address("169.254.96.1").packed


class Load(msgspec.Struct, frozen=True):
    """So many services with so many endpoints each."""

    services: int
    endpoints: int

    def __str__(self) -> str:
        return f"{self.services} x {self.endpoints}"

    @property
    def reals(self) -> int:
        """Real servers over all services."""
        return self.services * self.endpoints

    def backends(self, service: int) -> Iterator[str]:
        """The addresses of a service's endpoints."""
        first = _FIRST_ENDPOINT + service * self.endpoints
        return (str(IPv4Address(number)) for number in range(first, first + self.endpoints))

    def records(self) -> Iterator[tuple[str, str]]:
        """Keys and values as they are in etcd."""
        for service in range(self.services):
            yield service_key(service), json.dumps(service_record(service))
            for number, backend in enumerate(self.backends(service)):
                yield endpoint_key(service, f"e{number}"), json.dumps(endpoint_record(backend))


def vip(service: int) -> str:
    """The cluster IP of a service."""
    return str(IPv4Address(_FIRST_SERVICE + service))


def spare(number: int) -> str:
    """The address of an endpoint that no service has from the start."""
    return str(IPv4Address(_FIRST_SPARE + number))


def packed(address: str) -> Address:
    """An address as the kernel wants it."""
    return IPv4Address(address).packed


def frontend(service: int) -> Frontend:
    """The virtual server of a service."""
    return Frontend(packed(vip(service)), Protocol.TCP, PORT)


def node_port_frontend(port: int) -> Frontend:
    """The virtual server behind a node port."""
    return Frontend(NODE_PORT_ANCHOR, Protocol.TCP, port)


def service_key(service: int) -> str:
    """The key of a service record."""
    return f"{PREFIX}bench-{service:05}"


def endpoint_key(service: int, name: str) -> str:
    """The key of an endpoint record."""
    return f"{service_key(service)}/endpoints/{name}"


def service_record(service: int, node_port: int = 0) -> Mapping[str, object]:
    """A service record, with a node port if one is given."""
    port = {"port": PORT, "targetPort": BACKEND_PORT}
    return {"clusterIP": vip(service), "ports": [port | {"nodePort": node_port} if node_port else port]}


def endpoint_record(address: str, weight: int = 1) -> Mapping[str, object]:
    """An endpoint record."""
    return {"address": address} if weight == 1 else {"address": address, "weight": weight}
