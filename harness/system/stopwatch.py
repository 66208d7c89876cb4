"""Measures wall-clock time by stage, and how much of the whole the stages explain.

process starts ─▶ start ─▶ plan ─▶ imports ─▶ stages of a variant ─▶ verdict
└────────────────────────── elapsed ──────────────────────────────────────┘
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from harness.records import Clock

Seconds = dict[str, float]
"""Seconds by stage."""
ROUNDING = 1e-6
"""Seconds that sums of floats may be off."""


class Stopwatch:
    """Wall-clock time in seconds since a process started. Every second counts for one stage at most: what a stage
    inside another takes is no part of the other.

    shared: stages that are none of a single variant. explained: the sum over all stages of all variants.
    """

    def __init__(self, before: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._began, self.explained = clock, clock() - before, 0.0
        self.shared: Seconds = {}

    @property
    def elapsed(self) -> float:
        """Since the start; ``before`` seconds had passed when the stopwatch was made."""
        return self._clock() - self._began

    @contextmanager
    def measure(self, seconds: Seconds, stage: str) -> Iterator[None]:
        """Add what the block takes, less the stages inside it, to ``stage``, also if it raises."""
        start, inside = self.elapsed, self.explained
        try:
            yield
        finally:
            own = self.elapsed - start - (self.explained - inside)
            seconds[stage] = seconds.get(stage, 0.0) + own
            self.explained += own


_CURRENT: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def keep_time(before: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> Iterator[Stopwatch]:
    """Let ``measure_time`` count for a stopwatch inside the block: for that of an outer block, else for a new one."""
    if (outer := _CURRENT.get()) is not None:
        yield outer
        return
    token = _CURRENT.set(stopwatch := Stopwatch(before, clock))
    try:
        yield stopwatch
    finally:
        _CURRENT.reset(token)


@contextmanager
def measure_time(seconds: Seconds, stage: str) -> Iterator[None]:
    """Add what the block takes, in seconds, to ``stage``; stages inside it count for themselves while time is kept."""
    with (_CURRENT.get() or Stopwatch()).measure(seconds, stage):
        yield


@contextmanager
def measure_shared(stage: str) -> Iterator[None]:
    """The same for a stage that is none of a single variant; what it takes is lost where no time is kept."""
    stopwatch = _CURRENT.get() or Stopwatch()
    with stopwatch.measure(stopwatch.shared, stage):
        yield


def read_shared() -> Seconds:
    """The stages so far that are none of a single variant."""
    stopwatch = _CURRENT.get()
    return dict(stopwatch.shared) if stopwatch else {}


def read_clock(started: datetime, seconds: Seconds, checks: int) -> Clock:
    """The clock of a variant whose stages, alone and with its group, took ``seconds``; its group ``started`` then.

    Where other processes measured some of them (shards), the time of this one explains nothing and is left out.
    """
    stopwatch = _CURRENT.get() or Stopwatch()
    own = {**stopwatch.shared, **seconds}
    others = stopwatch.explained - sum(own.values())
    return Clock(
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=own,
        others=max(0.0, others),
        elapsed=stopwatch.elapsed if others > -ROUNDING else None,
        checks=checks,
    )


def seconds_of_process(proc: Path = Path("/proc/self/stat")) -> float:
    """How long this process has been running, Python's own start included; 0 where the system does not say."""
    try:
        started = int(proc.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
