"""How much memory the program takes with full books: a process of its own.

Prints MiB of resident memory: after the imports, with everything held, the most there ever was.
What the snapshot's records occupy on their way is in the last one only, as in the daemon.
"""

from __future__ import annotations

import os
import sys

# Everything the daemon imports is part of what it occupies.
import edgeproxy.daemon  # noqa: F401
from tests.bench.load import Load
from tests.bench.pipeline import Pipeline, snapshot
from tests.bench.processes import resident_mib


def main() -> None:
    load = Load(int(sys.argv[1]), int(sys.argv[2]))
    imports = resident_mib(os.getpid())
    pipeline = Pipeline()
    services = pipeline.decode(snapshot(load))
    plan = pipeline.plan(pipeline.compile(services))
    pipeline.encode(plan)
    pipeline.accept(plan)
    del plan, services
    print(imports, resident_mib(os.getpid()), resident_mib(os.getpid(), "VmHWM"))


if __name__ == "__main__":
    main()
