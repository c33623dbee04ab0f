"""What was done to the kernel, and why, in the log: each operation of a small plan, the sum of a large one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from edgeproxy.catalog import Catalog
from edgeproxy.model import Frontend
from edgeproxy.plan import Plan
from edgeproxy.systemd import fields

log = logging.getLogger(__name__)

TOLD_SINGLY = 20
"""Operations of one plan that are logged one by one."""


def tell(plan: Plan, owners: Mapping[Frontend, str], catalog: Catalog) -> None:
    """Log a plan that was carried out, with the journal fields of the services it was for."""
    if len(plan) > TOLD_SINGLY:
        kinds = Counter(type(operation).__name__ for operation in plan.ipvs)
        done = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
        done += [f"{len(plan.add_elements)} elements added, {len(plan.remove_elements)} removed"]
        log.info("applied %d operations: %s", len(plan), ", ".join(done))
        return
    for operation in plan.ipvs:
        service = owners.get(operation.frontend, "")
        entry = catalog.entry(service) if service else None
        extra = fields(
            service=service,
            key=entry.key if entry else "",
            revision=entry.mod_revision if entry else 0,
        )
        log.info("%s: %s", operation, operation.reason, extra=extra)
