"""Hands out units to workers, commits what they return, and gives to others what failed or was lost.

    next_units ─▶ shelves ─▶ a worker ─┬▶ Finished: commit, which may release further units
                     ▲                 ├▶ Failed: to another worker, MOST_ATTEMPTS times in all
                     └─────────────────┴▶ Lost: every unit that the worker had and had not finished

Results are committed in the order in which they arrive; nothing that is made of them may depend on it. What the head
does for a unit does not grow with their number.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.cluster.queues import Shelves
from harness.cluster.workers import Event, Failed, Finished, Joined, Lost, Monitor, Unit, Workers
from harness.errors import ClusterError

MOST_ATTEMPTS = 3
"""How often a unit is tried before it counts as one that cannot be computed."""
AHEAD = 2
"""Units that a worker has at a time, so that it need not wait for the head between two."""
WAIT_SECONDS = 1.0
"""How long the head listens before it looks at the clock."""
SAID = ("processor",)
"""Of a fingerprint, what may differ and is said then: machines of several kinds may round alike."""
PATIENCE = 300.0
"""Seconds without any worker after which the head gives up."""


class Job(Protocol):
    """What is computed. The head calls it, one call at a time."""

    def next_units(self, closed: Unit | None) -> Iterable[Unit]:
        """Units that may be handed out now that ``closed`` is committed, needless or given up; None: before the
        first."""
        ...

    def trim(self, unit: Unit) -> Unit | None:
        """The unit, right before it is handed out, without variants that no longer need it; None: nobody does."""
        ...

    def find_fault(self, unit: Unit, result: object) -> str:
        """Why a result must not be stored, which then counts as a failure of its worker; empty if it may be."""
        ...

    def commit(self, unit: Unit, result: object) -> None:
        """Store a result durably."""
        ...

    def give_up(self, failed: Failed) -> Iterable[Unit]:
        """Units in place of one that no worker could compute, for fewer variants say. Raises if there are none."""
        ...


@dataclass
class _Worker:
    name: str
    label: str
    held: str | None = None
    flight: deque[Unit] = field(default_factory=deque)
    failed: int = 0
    """Units that failed since the last one that did not."""


@dataclass
class _Trouble:
    """A unit that was tried in vain."""

    unit: Unit
    attempts: int = 0
    on: set[str] = field(default_factory=set)


class Dispatcher:
    """One job on one set of workers.

    expected: the fingerprint that every worker must have; without it, that of the first.
    """

    def __init__(
        self,
        job: Job,
        workers: Workers,
        monitor: Monitor,
        *,
        expected: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._crew, self._monitor = job, workers, monitor
        self._expected = expected
        self._patience, self._clock = patience, clock
        self._workers: dict[str, _Worker] = {}
        self._refused: list[str] = []
        self._shelves: dict[str, Shelves] = {}
        self._again: deque[_Trouble] = deque()
        """Units to be tried once more; few, because workers that only fail are let go."""
        self._trouble: dict[Unit, _Trouble] = {}
        self._idle: dict[str, None] = {}
        """Workers with room for another unit, in the order in which they got it."""
        self._open: set[tuple[str, str, str]] = set()
        """Suite, unit and variant of everything that is listed and not done."""
        self._known = self._closed = 0
        self._needless: deque[Unit] = deque()
        """Units that were closed without a result, and whose successors are not yet released."""
        self._last = ""
        """What went wrong last, for the error that no worker is left."""

    def go(self) -> None:
        """Compute all units. Raises ClusterError if that is not possible, and whatever the job raises."""
        self._crew.start()
        try:
            self._add(self._job.next_units(None))
            self._release()
            alone_since: float | None = None
            while self._closed < self._known:
                for event in self._crew.wait(WAIT_SECONDS):
                    self._handle(event)
                    self._release()
                alone_since = self._watch_patience(alone_since)
            for each in self._crew.finish():
                if isinstance(each, Failed):
                    raise ClusterError(
                        f"{each.worker} ended with {each.reason}, so what it computed is not to be trusted"
                    )
                self._monitor.note(
                    f"worker {each.worker} was lost before it could say whether its models are unchanged, as one that "
                    f"is lost earlier: {each.reason}"
                )
        finally:
            self._crew.stop()

    def _release(self) -> None:
        while self._needless:
            self._add(self._job.next_units(self._needless.popleft()))

    def _watch_patience(self, alone_since: float | None) -> float | None:
        """Since when units wait for workers of which none is even on its way. Raises ClusterError once that is too
        long."""
        if self._closed == self._known or len(self._idle) < len(self._workers):
            return None
        absence = self._crew.explain_absence()
        if not absence:
            return None
        since = self._clock() if alone_since is None else alone_since
        if self._clock() - since >= self._patience:
            refused = f"; refused: {'; '.join(self._refused)}" if self._refused else ""
            last = f"; last of all, {self._last}" if self._last else ""
            raise ClusterError(
                f"no worker took any of the {self._known - self._closed} units left for {self._patience:.0f} s: "
                f"{absence}{refused}{last}; what was computed is kept, and the same command resumes"
            )
        return since

    def _add(self, units: Iterable[Unit]) -> None:
        before = self._known
        for unit in units:
            names = _names_of(unit)
            if any(name in self._open for name in names):
                raise ClusterError(f"the unit {unit.label} is listed twice; this is a defect of the harness")
            self._open.update(names)
            self._known += 1
            self._put(unit)
        if self._known > before:
            self._serve()

    def _close(self, unit: Unit) -> None:
        self._open.difference_update(_names_of(unit))
        self._closed += 1

    def _put(self, unit: Unit) -> None:
        self._shelves.setdefault(unit.needs, Shelves()).add(unit)

    def _serve(self) -> None:
        """Give units to the workers that have room, until no unit or no room is left."""
        for name in list(self._idle):
            self._fill(self._workers[name])

    def _fill(self, worker: _Worker) -> None:
        """Give a worker as many units as it should have. The last units are not piled up on one of them."""
        waiting = self._shelves[worker.label].waiting if worker.label in self._shelves else 0
        room = AHEAD if waiting > AHEAD * len(self._workers) else 1
        while len(worker.flight) < room and (unit := self._take(worker)) is not None:
            worker.flight.append(unit)
            self._monitor.handed(worker.name, unit)
            self._crew.hand(worker.name, unit)
        if worker.flight:
            self._idle.pop(worker.name, None)
        else:
            self._idle[worker.name] = None

    def _take(self, worker: _Worker) -> Unit | None:
        """The next unit for a worker that some variant still needs."""
        while (unit := self._take_again(worker) or self._take_new(worker)) is not None:
            trimmed = self._job.trim(unit)
            if trimmed is None:
                self._close(unit)
                self._needless.append(unit)
                continue
            if trimmed is not unit:
                self._open.difference_update(set(_names_of(unit)) - set(_names_of(trimmed)))
            return trimmed
        return None

    def _take_new(self, worker: _Worker) -> Unit | None:
        shelves = self._shelves.get(worker.label)
        unit = shelves.take(worker.held) if shelves else None
        worker.held = unit.holds or worker.held if unit else worker.held
        return unit

    def _take_again(self, worker: _Worker) -> Unit | None:
        """A unit that failed elsewhere; one that failed here too only if there is no other worker for it."""
        for _ in range(len(self._again)):
            trouble = self._again.popleft()
            others = (each for each in self._workers.values() if each.label == trouble.unit.needs)
            fits = worker.label == trouble.unit.needs
            if fits and (worker.name not in trouble.on or all(each.name in trouble.on for each in others)):
                return trouble.unit
            self._again.append(trouble)
        return None

    def _handle(self, event: Event) -> None:
        if isinstance(event, Joined):
            self._welcome(event)
        elif (worker := self._workers.get(event.worker)) is None:
            return  # of a worker that was let go
        elif isinstance(event, Lost):
            self._lose(worker, event)
        elif event.unit in worker.flight:
            worker.flight.remove(event.unit)
            if isinstance(event, Failed):
                self._retry(worker, event)
            elif fault := self._job.find_fault(event.unit, event.result):
                self._retry(worker, Failed(worker.name, event.unit, fault))
            else:
                self._finish(worker, event)

    def _welcome(self, joined: Joined) -> None:
        """Take a worker into service, unless it is not like the others."""
        if self._expected is None:
            self._expected = dict(joined.fingerprint)
        if differing := describe_difference(self._expected, joined.fingerprint, without=SAID):
            self._refused.append(f"{joined.worker} ({differing})")
            self._monitor.note(f"worker {joined.worker} is refused, because its numbers could differ: {differing}")
            self._crew.dismiss(joined.worker)
            return
        if unlike := describe_difference(self._expected, joined.fingerprint, only=SAID):
            self._monitor.note(
                f"worker {joined.worker} is of another kind, and rounds fixed computations alike: {unlike}"
            )
        worker = self._workers[joined.worker] = _Worker(joined.worker, joined.label)
        self._monitor.joined(worker.name)
        self._fill(worker)

    def _finish(self, worker: _Worker, finished: Finished) -> None:
        """Keep the worker busy first, then store what it sent."""
        worker.failed = 0
        self._fill(worker)
        self._job.commit(finished.unit, finished.result)
        self._close(finished.unit)
        self._trouble.pop(finished.unit, None)
        self._monitor.done(worker.name, finished.unit, self._closed, self._known)
        self._add(self._job.next_units(finished.unit))

    def _retry(self, worker: _Worker, failed: Failed) -> None:
        """Have a unit tried once more, by another worker if there is one; let go of a worker that only fails."""
        worker.failed += 1
        self._last = f"{failed.unit.label} failed on {worker.name}: {failed.reason}"
        self._try_again(failed)
        if worker.failed >= MOST_ATTEMPTS and len(self._workers) > 1:
            self._monitor.note(f"worker {worker.name} gets no more units: {worker.failed} failed in a row")
            self._crew.dismiss(worker.name)
            self._remove(worker)
        else:
            self._fill(worker)
        self._serve()

    def _try_again(self, failed: Failed, counts: bool = True) -> None:
        trouble = self._trouble.setdefault(failed.unit, _Trouble(failed.unit))
        trouble.attempts += counts
        trouble.on.add(failed.worker)
        if trouble.attempts < MOST_ATTEMPTS:
            self._monitor.note(f"{failed.unit.label} is tried again: {failed.reason}")
            self._again.append(trouble)
            return
        del self._trouble[failed.unit]
        replaced = list(self._job.give_up(failed))
        self._close(failed.unit)
        self._needless.append(failed.unit)
        self._add(replaced)

    def _lose(self, worker: _Worker, lost: Lost) -> None:
        """Give the units of a worker that is gone to others. Only the one that it ran may be to blame."""
        self._last = f"{worker.name} was lost: {lost.reason}"
        self._monitor.note(f"worker {worker.name} was lost: {lost.reason}")
        running = worker.flight.popleft() if worker.flight else None
        self._remove(worker)
        if running is not None:
            failed = Failed(worker.name, running, f"its worker was lost: {lost.reason}", lost.log)
            self._try_again(failed, counts=lost.blames_unit)
        self._serve()

    def _remove(self, worker: _Worker) -> None:
        """Forget a worker, and put the units that it had not begun back."""
        del self._workers[worker.name]
        self._idle.pop(worker.name, None)
        if worker.label in self._shelves:
            self._shelves[worker.label].release(worker.held)
        for unit in worker.flight:
            self._put(unit)
        self._monitor.gone(worker.name)


def _names_of(unit: Unit) -> list[tuple[str, str, str]]:
    """What two units may not have in common: a unit is handed out for several variants, each of them once."""
    return [(unit.suite, unit.name, variant) for variant in unit.variants]


def describe_difference(
    expected: Mapping[str, str], found: Mapping[str, str], only: Sequence[str] = (), without: Sequence[str] = ()
) -> str:
    """What differs between two fingerprints, by name; empty if nothing does. only, without: names that count or not."""
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    names = [name for name in names if name not in without and (not only or name in only)]
    return "; ".join(
        f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}" for name in names
    )


def describe_failure(failed: Failed) -> str:
    """Unit, worker, reason, and the end of the worker's log, for an error."""
    log = f"\nthe end of what {failed.worker} wrote:\n{failed.log}" if failed.log else ""
    return (
        f"{failed.unit.label} could not be computed on any worker, {MOST_ATTEMPTS} attempts in all; the last on "
        f"{failed.worker}: {failed.reason}{log}"
    )
