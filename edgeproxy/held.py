"""Which kernel objects belong to services whose record cannot be read. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from edgeproxy.address import Network
from edgeproxy.kernel.nft_sets import comment
from edgeproxy.kernel.ruleset import NodePortAnchor, anchor
from edgeproxy.model import Element, Frontend, SetName
from edgeproxy.plan import Held


def kernel_objects(
    services: Iterable[str], elements: Collection[Element], anchors: Iterable[Network]
) -> Held:
    """The objects of some services, by the elements in the kernel: their comment is the service's name."""
    names = frozenset(map(comment, services))
    if not names:
        return Held()
    networks = tuple(anchors)
    theirs = (element for element in elements if element.comment in names)
    return Held(names, frozenset(found for element in theirs for found in _frontends(element, networks)))


def _frontends(element: Element, anchors: tuple[Network, ...]) -> Iterator[Frontend]:
    """The virtual servers an element leads to."""
    match element.set, element.key:
        case ((SetName.FRONTENDS4 | SetName.FRONTENDS6), (address, protocol, port)):
            yield Frontend(address, protocol, port)  # type: ignore[arg-type]  # as the sets' types say
        case ((SetName.DETOURS4 | SetName.DETOURS6), (_, protocol, port)):
            yield Frontend(element.data, protocol, port)  # type: ignore[arg-type]
        case ((SetName.NODE_PORTS4 | SetName.NODE_PORTS6), (protocol, port)):
            for cidr in anchors:
                for index in NodePortAnchor:
                    yield Frontend(anchor(cidr, index), protocol, port)  # type: ignore[arg-type]
