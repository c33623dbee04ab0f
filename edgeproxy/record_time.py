"""When the writer of a record says to have changed it: for the programming latency alone. Pure."""

from __future__ import annotations

from edgeproxy.record_endpoint import endpoint_from_value
from edgeproxy.record_keys import EndpointKey, ServiceKey, parse_key
from edgeproxy.record_service import service_from_json
from edgeproxy.versions import Event


def changed_at(prefix: str, event: Event) -> float:
    """`changedAt` of the record in a put, seconds since the epoch; 0.0 where it says nothing."""
    if event.value is None:
        return 0.0
    match parse_key(prefix.encode(), event.key):
        case ServiceKey():
            service = service_from_json(event.value).record
            return service.changed_at if service else 0.0
        case EndpointKey():
            endpoint = endpoint_from_value(event.value).record
            return endpoint.changed_at if endpoint else 0.0
        case _:
            return 0.0
