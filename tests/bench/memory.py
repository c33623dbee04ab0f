"""How much memory the program takes with full books: a process of its own.

Prints MiB of resident memory: after the imports, with everything held, the most there ever was.
Held are the books, the catalog and the store client's ledger; what the snapshot's records occupy on their way
is in the last number only, as in the daemon.
"""

from __future__ import annotations

import os
import sys

# Everything the daemon imports is part of what it occupies.
import edgeproxy.daemon  # noqa: F401
from edgeproxy.etcd.changes import Cause, Snapshot
from edgeproxy.etcd.ledger import Ledger
from tests.bench.load import Load
from tests.bench.pipeline import Pipeline, snapshot
from tests.bench.processes import resident_mib


def main() -> None:
    load = Load(int(sys.argv[1]), int(sys.argv[2]))
    imports = resident_mib(os.getpid())
    pipeline, ledger = Pipeline(), Ledger()
    records = tuple(snapshot(load))
    ledger.replace(Snapshot(len(records), records, Cause.START), cluster_id=1)
    services = pipeline.decode(records)
    del records
    plan = pipeline.plan(pipeline.compile(services))
    pipeline.encode(plan)
    pipeline.accept(plan)
    del plan, services
    print(imports, resident_mib(os.getpid()), resident_mib(os.getpid(), "VmHWM"))


if __name__ == "__main__":
    main()
