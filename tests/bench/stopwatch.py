"""Time spent inside chosen methods, generators included, without touching their modules."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch


class Stopwatch:
    """Sums up seconds by name while it is entered; a method inside another counts for both."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patches.close()

    def watch(self, owner: type, method: str, name: str) -> Self:
        """Count the time of a method; of a generator only the time in it, not what runs between."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._running(name):
                answer = original(*args, **kwargs)
            return self._steps(answer, name) if isinstance(answer, Generator) else answer

        self._patches.enter_context(patch.object(owner, method, timed))
        return self

    def _steps(self, steps: Generator[Any, Any, Any], name: str) -> Generator[Any, Any, Any]:
        while True:
            try:
                with self._running(name):
                    step = next(steps)
            except StopIteration as end:
                return end.value
            yield step

    @contextmanager
    def _running(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began
