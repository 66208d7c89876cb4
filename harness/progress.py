"""Progress of long computations: the protocol by which it is reported, and loops that report by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

SILENT_SECONDS = 2.0
"""A loop that takes less says nothing."""


class Progress(Protocol):
    """Reports the progress of the work to the user."""

    def step(self, what: str, done: int, of: int) -> None:
        """``done`` of ``of`` units are done."""
        ...


class Stage(str):
    """The name of a stage, with what changes while it runs: a loss, a rate; and a line for each of several workers.

    Equal names are the same stage.
    """

    detail: str
    rows: tuple[str, ...]

    def __new__(cls, name: str, detail: str = "", rows: tuple[str, ...] = ()) -> Stage:
        """A stage ``name``."""
        self = super().__new__(cls, name)
        self.detail, self.rows = detail, rows
        return self


def detail_of(what: str) -> str:
    """What changes while a stage runs; empty if it has no such detail."""
    return what.detail if isinstance(what, Stage) else ""


def rows_of(what: str) -> tuple[str, ...]:
    """The lines about the workers of a stage; none if it has none."""
    return what.rows if isinstance(what, Stage) else ()


T = TypeVar("T")
_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def report_to(progress: Progress) -> Iterator[None]:
    """Let the loops inside report to ``progress``."""
    token = _CURRENT.set(progress)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def track(
    what: str,
    items: Sequence[T],
    clock: Callable[[], float] = time.monotonic,
    detail: Callable[[], str] = str,
) -> Iterator[T]:
    """The items, one by one; from SILENT_SECONDS on it is reported how many are done, to whoever listens.

    detail: called for each report, tells what changes from one to the next.
    """
    progress, began = _CURRENT.get(), clock()
    told = False
    for done, item in enumerate(items):
        if progress is not None and done and clock() - began >= SILENT_SECONDS:
            progress.step(Stage(what, detail()), done, len(items))
            told = True
        yield item
    if told and progress is not None:
        progress.step(Stage(what, detail()), len(items), len(items))
