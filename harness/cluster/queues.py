"""Units that wait for a worker. Whatever their number, adding and taking one costs the same."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from dataclasses import dataclass, field

from harness.cluster.workers import Unit


@dataclass
class Shelf:
    """Units that need the same models: larger ones first, by powers of two of their cost, else as they came."""

    _classes: list[int] = field(default_factory=list)
    """Exponents of the costs, negative so that the largest comes first; a few dozen at most."""
    _units: dict[int, deque[Unit]] = field(default_factory=dict)
    waiting: int = 0
    workers: int = 0
    """Workers that have these models open."""

    def add(self, unit: Unit) -> None:
        """Put a unit behind those of its size."""
        size = -math.frexp(unit.cost)[1]
        if size not in self._units:
            self._units[size] = deque()
            insort(self._classes, size)
        self._units[size].append(unit)
        self.waiting += 1

    def take(self) -> Unit:
        """Remove and return the next unit."""
        size = self._classes[0]
        unit = self._units[size].popleft()
        self.waiting -= 1
        if not self._units[size]:
            del self._units[size]
            self._classes.pop(0)
        return unit


@dataclass
class Shelves:
    """The shelves of all models, for workers with one label."""

    _by_key: dict[str, Shelf] = field(default_factory=dict)
    _untouched: deque[str] = field(default_factory=deque)
    """Keys of shelves that no worker has open yet, in order."""
    _open: dict[str, Shelf] = field(default_factory=dict)
    """Shelves that workers have open; never more than there are workers."""
    waiting: int = 0

    def add(self, unit: Unit) -> None:
        """Put a unit on the shelf of its models."""
        shelf = self._by_key.get(unit.holds)
        if shelf is None:
            shelf = self._by_key[unit.holds] = Shelf()
        if unit.holds and not shelf.waiting and not shelf.workers:
            self._untouched.append(unit.holds)
        shelf.add(unit)
        self.waiting += 1

    def take(self, held: str | None) -> Unit | None:
        """The next unit for a worker that has the models ``held`` open: of those, else one without models, else of
        models nobody has, else of those with the most units for each of their workers. None if nothing waits."""
        if not self.waiting:
            return None
        key = self._choose(held)
        if key and key != held:
            self.release(held)
            self._by_key[key].workers += 1
            self._open[key] = self._by_key[key]
        self.waiting -= 1
        return self._by_key[key].take()

    def release(self, held: str | None) -> None:
        """A worker has let go of the models ``held``."""
        if held is None or held not in self._open:
            return
        shelf = self._open[held]
        shelf.workers -= 1
        if not shelf.workers:
            del self._open[held]
            if shelf.waiting:
                self._untouched.append(held)

    def _choose(self, held: str | None) -> str:
        if held is not None and held in self._open and self._open[held].waiting:
            return held
        if (free := self._by_key.get("")) is not None and free.waiting:
            return ""
        if self._untouched:
            return self._untouched.popleft()
        return max(self._open, key=lambda key: self._open[key].waiting / self._open[key].workers)
