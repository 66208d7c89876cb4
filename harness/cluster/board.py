"""What all workers do, as one stage of progress: a line a worker, the rate, and how much is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from harness.cluster.workers import Unit
from harness.progress import Progress, Stage

EVERY_SECONDS = 0.25
"""Between two reports, whatever the number of workers."""
MOST_ROWS = 16
"""Workers that are shown; of more it says how many."""


@dataclass
class _Row:
    since: float
    units: int = 0
    last: str = "opens its models"

    def describe(self, name: str, now: float) -> str:
        rate = f", {self.units / (now - self.since):.2g} a second" if self.units and now > self.since else ""
        return f"{name}  {self.units} units{rate}  {self.last}"


class Board:
    """A Monitor that reports to the progress of a run. note: prints a sentence."""

    def __init__(
        self, progress: Progress, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress, self._note, self._clock = progress, note, clock
        self._rows: dict[str, _Row] = {}
        self._began: float | None = None
        self._reported = -EVERY_SECONDS

    def joined(self, worker: str) -> None:
        """See Monitor."""
        now = self._clock()
        self._began = now if self._began is None else self._began
        self._rows[worker] = _Row(now, last="waits")

    def handed(self, worker: str, unit: Unit) -> None:
        """See Monitor."""
        self._rows[worker].last = unit.label

    def done(self, worker: str, unit: Unit, closed: int, known: int) -> None:
        """See Monitor."""
        row = self._rows.get(worker)
        if row is not None:
            row.units += 1
        now = self._clock()
        if closed >= known or now - self._reported >= EVERY_SECONDS:
            self._reported = now
            self._progress.step(Stage("units", self._describe(closed, now), self._list_rows(now)), closed, known)

    def gone(self, worker: str) -> None:
        """See Monitor."""
        self._rows.pop(worker, None)

    def note(self, text: str) -> None:
        """See Monitor."""
        self._note(text)

    def _describe(self, closed: int, now: float) -> str:
        count = f"{len(self._rows)} worker{'s' * (len(self._rows) != 1)}"
        seconds = now - (now if self._began is None else self._began)
        return f"{count}, {closed / seconds:.2g} a second" if seconds > 0 else count

    def _list_rows(self, now: float) -> tuple[str, ...]:
        shown = [row.describe(name, now) for name, row in list(self._rows.items())[:MOST_ROWS]]
        more = len(self._rows) - len(shown)
        return (*shown, f"… and {more} more workers") if more > 0 else tuple(shown)
