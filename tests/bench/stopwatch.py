"""Time spent inside chosen methods, generators included, without touching their modules."""

from __future__ import annotations

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
        timed = (
            self._generator(original, name)
            if inspect.isgeneratorfunction(original)
            else self._call(original, name)
        )
        self._patches.enter_context(patch.object(owner, method, timed))
        return self

    def _call(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return timed

    def _generator(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            steps = original(*args, **kwargs)
            while True:
                began = time.perf_counter()
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
                finally:
                    self.seconds[name] += time.perf_counter() - began
                yield step

        return timed
