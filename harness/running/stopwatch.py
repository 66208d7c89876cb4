"""Measures wall-clock time by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def measure_time(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the duration of the block in seconds to ``stage``."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
