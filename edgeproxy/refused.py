"""Operations the kernel refused: findings of the services they belong to, until they succeed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgeproxy.catalog import Catalog
from edgeproxy.kernel.ipvs_operations import AddVirtual, Failure
from edgeproxy.model import Finding, Frontend, Reason


class Refused:
    """What was refused, by frontend."""

    def __init__(self) -> None:
        self._findings: dict[Frontend, Finding] = {}

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

    def forget(self, frontends: Iterable[Frontend]) -> None:
        """Clear what is about to be tried again."""
        for frontend in frontends:
            self._findings.pop(frontend, None)

    def frontends(self) -> set[Frontend]:
        """The frontends to try again."""
        return set(self._findings)

    def findings(self) -> Iterable[Finding]:
        """What stands."""
        return self._findings.values()


def _judge(failure: Failure) -> tuple[str, Reason, str]:
    """JSON path, reason and message of a failure."""
    if failure.unknown_scheduler:
        return "scheduler", Reason.UNKNOWN_SCHEDULER, failure.message
    return "", Reason.KERNEL, failure.message
