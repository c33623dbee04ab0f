"""Operations the kernel refused: findings of the services they belong to, until they succeed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from edgeproxy.books import ElementKey, Touched, key_of
from edgeproxy.catalog import Catalog
from edgeproxy.kernel.ipvs_operations import AddVirtual, Failure
from edgeproxy.model import Element, Finding, Frontend, Reason


class Refused:
    """What was refused: virtual servers by frontend, elements by key."""

    def __init__(self) -> None:
        self._findings: dict[Frontend, Finding] = {}
        self._elements: dict[ElementKey, Finding] = {}

    def note(
        self, failures: Sequence[Failure], owners: Mapping[Frontend, str], catalog: Catalog
    ) -> set[Frontend]:
        """Note failures; answers the frontends whose virtual server somebody else has removed.

        Their mirror is wrong, and planning them again puts it right.
        """
        unmade = {f.operation.frontend for f in failures if isinstance(f.operation, AddVirtual)}
        vanished = set()
        for failure in failures:
            frontend = failure.operation.frontend
            if failure.foreign:
                # The book of actual state knows: a finding for as long as it is there.
                continue
            if failure.vanished:
                if frontend not in unmade:
                    vanished.add(frontend)
                continue
            entry = catalog.entry(owners[frontend]) if frontend in owners else None
            key, revision = (entry.key, entry.mod_revision) if entry else ("", 0)
            self._findings[frontend] = Finding(key, revision, *_judge(failure))
        return vanished

    def note_elements(self, refused: Iterable[tuple[Element, str]], catalog: Catalog) -> None:
        """Note elements the kernel refused, with its reasons."""
        for element, reason in refused:
            entry = catalog.entry(element.comment) if element.comment else None
            key, revision = (entry.key, entry.mod_revision) if entry else ("", 0)
            self._elements[key_of(element)] = Finding(key, revision, "", Reason.KERNEL, reason)

    def forget(self, touched: Touched) -> None:
        """Clear what is about to be tried again."""
        for frontend in touched.frontends:
            self._findings.pop(frontend, None)
        for key in touched.elements:
            self._elements.pop(key, None)

    def again(self) -> Touched:
        """What to try again."""
        return Touched(set(self._findings), set(self._elements))

    def findings(self) -> Iterator[Finding]:
        """What stands."""
        yield from self._findings.values()
        yield from self._elements.values()


def _judge(failure: Failure) -> tuple[str, Reason, str]:
    """JSON path, reason and message of a failure."""
    if failure.unknown_scheduler:
        return "scheduler", Reason.UNKNOWN_SCHEDULER, failure.message
    return "", Reason.KERNEL, failure.message
