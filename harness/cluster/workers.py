"""What the head and its workers exchange: units, events, and the protocol by which any kind of worker is driven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

_MOST_NAMES = 3
"""Variants that a unit's label names; of more it says how many."""


@dataclass(frozen=True)
class Unit:
    """A piece of work that is committed as a whole: one unit of a suite, for the variants that lack it.

    kind: what is computed. cost: expected work, in any measure that is the same for all units. needs: the label that a
    worker must carry (empty: workers without one). holds: the models that it takes, by a key: a worker that has them
    open is preferred; empty: none, so that it leaves those open that are. report: whether the report of a pass is to
    come with it. about: what the worker must know beside the models.
    """

    suite: str
    name: str
    variants: tuple[str, ...]
    kind: str = ""
    cost: float = 1.0
    needs: str = ""
    holds: str = ""
    report: bool = False
    about: object = field(default=None, compare=False, repr=False)

    @property
    def label(self) -> str:
        """Suite, unit and variants, for people."""
        more = f" and {len(self.variants) - _MOST_NAMES} more" * (len(self.variants) > _MOST_NAMES)
        return f"{self.suite} {self.name}: {', '.join(self.variants[:_MOST_NAMES])}{more}"


@dataclass(frozen=True)
class Joined:
    """A worker can take units. fingerprint: what must be the same on all workers, by name. label: see Unit.needs."""

    worker: str
    fingerprint: Mapping[str, str]
    label: str = ""


@dataclass(frozen=True)
class Finished:
    """A worker has computed a unit."""

    worker: str
    unit: Unit
    result: object


@dataclass(frozen=True)
class Failed:
    """A worker could not compute a unit, and lives. log: the end of what it wrote. error: the name of the exception."""

    worker: str
    unit: Unit
    reason: str
    log: str = ""
    error: str = ""


@dataclass(frozen=True)
class Lost:
    """A worker is gone. blames_unit: whether the unit that it ran may be why; not so where its whole node went."""

    worker: str
    reason: str
    log: str = ""
    blames_unit: bool = True


Event = Joined | Finished | Failed | Lost


class Workers(Protocol):
    """Processes that compute units. Any of them may join late and may go at any time."""

    def start(self) -> None:
        """Ask for the workers; each is reported as Joined once it can take units."""
        ...

    def hand(self, worker: str, unit: Unit) -> None:
        """Give a worker one more unit; it works through what it has in order."""
        ...

    def wait(self, seconds: float) -> Sequence[Event]:
        """What has happened since the last call; empty if nothing does within ``seconds``."""
        ...

    def dismiss(self, worker: str) -> None:
        """Let a worker go; nothing is heard of it any more."""
        ...

    def explain_absence(self) -> str:
        """What was asked for and what there is, for an error that no worker came; empty while one is on its way."""
        ...

    def finish(self) -> Sequence[Failed | Lost]:
        """Have every worker check itself once more, and say which of them failed, or are lost and cannot tell."""
        ...

    def stop(self) -> None:
        """Let all workers go."""
        ...


class Monitor(Protocol):
    """Is told what the workers do."""

    def joined(self, worker: str) -> None:
        """A worker takes units from now on."""
        ...

    def handed(self, worker: str, unit: Unit) -> None:
        """A worker was given a unit."""
        ...

    def done(self, worker: str, unit: Unit, closed: int, known: int) -> None:
        """A unit was committed; ``closed`` of the ``known`` units need nothing more."""
        ...

    def gone(self, worker: str) -> None:
        """A worker takes no more units."""
        ...

    def note(self, text: str) -> None:
        """Something that a person should know and that changes no number."""
        ...
