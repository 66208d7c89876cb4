"""Workers on a clock that only they move: units take the time that is set, failures and deaths come when asked for."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.cluster.workers import Event, Failed, Finished, Joined, Lost, Unit

Compute = Callable[[str, Unit], object]
"""Result of a unit on a worker; raises where it fails there."""


@dataclass
class _One:
    fingerprint: Mapping[str, str]
    label: str
    queue: deque[Unit] = field(default_factory=deque)
    free_at: float = 0.0
    alive: bool = True


@dataclass
class SimulatedWorkers:
    """Workers by name with their labels, each joining at its time.

    seconds: of a unit. dies: when a worker does, and whether with its node. latency: of a message, in seconds. head:
    how long the head takes for a result, during which it does nothing else.
    """

    labels: Mapping[str, str]
    compute: Compute = lambda worker, unit: (unit.suite, unit.name, unit.variants)
    seconds: Callable[[str, Unit], float] = lambda worker, unit: unit.cost
    fingerprints: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    joins: Mapping[str, float] = field(default_factory=dict)
    dies: Mapping[str, tuple[float, bool]] = field(default_factory=dict)
    latency: float = 0.0
    head: Callable[[Unit], float] = lambda unit: 0.0
    now: float = 0.0
    handed: list[tuple[str, Unit]] = field(default_factory=list)
    wasted: float = 0.0
    """Seconds of work that deaths cost."""
    stopped: bool = False
    failing_at_the_end: Sequence[Failed | Lost] = ()
    busy: dict[str, float] = field(default_factory=dict)
    _events: list[tuple[float, int, Event]] = field(default_factory=list)
    _workers: dict[str, _One] = field(default_factory=dict)
    _number: int = 0

    def clock(self) -> float:
        return self.now

    def start(self) -> None:
        for name, label in self.labels.items():
            fingerprint = self.fingerprints.get(name, {"torch": "2.8"})
            self._workers[name] = _One(fingerprint, label)
            self._at(self.joins.get(name, 0.0), Joined(name, fingerprint, label))
            if name in self.dies:
                when, node = self.dies[name]
                self._at(when, Lost(name, "its node is gone" if node else "killed", "last words", not node))

    def hand(self, worker: str, unit: Unit) -> None:
        self.handed.append((worker, unit))
        one = self._workers[worker]
        begins = max(self.now + self.latency, one.free_at)
        seconds = self.seconds(worker, unit)
        one.free_at = begins + seconds
        one.queue.append(unit)
        self.busy[worker] = self.busy.get(worker, 0.0) + seconds
        event: Event
        try:
            event = Finished(worker, unit, self.compute(worker, unit))
        except ArithmeticError as error:
            event = Failed(worker, unit, str(error), f"log of {worker}", type(error).__name__)
        self._at(one.free_at + self.latency, event)

    def wait(self, seconds: float) -> Sequence[Event]:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            when, _, event = heapq.heappop(self._events)
            self.now = max(self.now, when) + (self.head(event.unit) if isinstance(event, Finished) else 0.0)
            one = self._workers[event.worker]
            if not one.alive:
                continue
            if isinstance(event, Lost):
                one.alive = False
                begun = [each for each in (self._start_of(event.worker),) if each is not None]
                self.wasted += sum(self.now - each for each in begun)
            elif isinstance(event, Finished | Failed):
                one.queue.popleft()
            return [event]
        self.now = until
        return []

    def _start_of(self, worker: str) -> float | None:
        one = self._workers[worker]
        if not one.queue:
            return None
        rest = sum(self.seconds(worker, unit) for unit in one.queue)
        return min(self.now, one.free_at - rest)

    def dismiss(self, worker: str) -> None:
        self._workers[worker].alive = False

    def explain_absence(self) -> str:
        return "" if any(isinstance(event, Joined) for _, _, event in self._events) else "asked for 2 workers, got none"

    def finish(self) -> Sequence[Failed | Lost]:
        return self.failing_at_the_end

    def stop(self) -> None:
        self.stopped = True

    def _at(self, when: float, event: Event) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, event))


@dataclass
class Silent:
    """A monitor that keeps what it is told."""

    notes: list[str] = field(default_factory=list)
    closed: list[tuple[int, int]] = field(default_factory=list)

    def joined(self, worker: str) -> None: ...

    def handed(self, worker: str, unit: Unit) -> None: ...

    def done(self, worker: str, unit: Unit, closed: int, known: int) -> None:
        self.closed.append((closed, known))

    def gone(self, worker: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)
