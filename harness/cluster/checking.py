"""In a worker: the models of a check, kept open, and the rows of its units, which the head commits.

Nothing is stored here. What one process would commit to the tables of a variant goes into an outbox, and from there to
the head; so the tables are the same, whoever computed what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cluster.handing_on import find_made, leave_made, takes_documents
from harness.cluster.messages import (
    DESCRIBE,
    Computed,
    Described,
    Frames,
    Rows,
    Wrong,
    hash_frames,
    hash_inputs,
)
from harness.cluster.workers import Unit
from harness.concluding.pair import Unit as PlannedUnit
from harness.errors import HarnessError
from harness.lockstep.stages import SETUP
from harness.planning.sampling.sample import Sample
from harness.planning.specs import Plan
from harness.progress import report_to
from harness.running.pairs import LoadedPair
from harness.running.session import Session, open_session
from harness.running.units import ARTIFACT
from harness.system.foreign import Ticking
from harness.tables.memory import MemoryTables
from harness.tables.store import TABLES, TableFile, encode_unit

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Outbox(MemoryTables):
    """Tables of a suite that remember what was committed since it was last asked for."""

    fresh: list[tuple[str, tuple[TableFile, ...]]] = field(default_factory=list)

    def commit(self, unit: str, frames: Frames, snapshots: Frames | None = None) -> None:
        """See Sink.commit."""
        super().commit(unit, frames, snapshots)
        self.fresh.append((unit, encode_unit(unit, frames, snapshots or {})))

    def take(self) -> list[tuple[str, tuple[TableFile, ...]]]:
        """What is new, which is forgotten; only the report of a pass stays, because it is not made again."""
        fresh, self.fresh = self.fresh, []
        self.units = {name: frames for name, frames in self.units.items() if name == SETUP}
        return fresh


@dataclass
class OutboxStore:
    """The outboxes of one variant (see harness.concluding.pair.Storage). folder: beside it the artifact is saved."""

    folder: Path
    by_suite: dict[str, Outbox] = field(default_factory=dict)
    messages: tuple[str, ...] = ()

    def sink(self, suite: str) -> Outbox:
        """The outbox of a suite."""
        return self.by_suite.setdefault(suite, Outbox())

    def suites(self) -> tuple[str, ...]:
        """See Tables."""
        return tuple(sorted(self.by_suite))

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """See Tables."""
        return self.sink(suite).read(table, columns)

    def close(self) -> None:
        """Nothing to let go of."""


class Silent:
    """The progress of a worker, which the head tells."""

    def step(self, what: str, done: int, of: int) -> None:
        """Say nothing."""


class CheckSession:
    """The models of a set."""

    def __init__(self, plans: Sequence[Plan], folders: Sequence[Path]) -> None:
        self._plans, self._folders = plans, folders
        self._spent: set[str] = set()
        """Variants whose artifact was saved, which may change a model."""
        self._hashes: dict[tuple[str, str], str] = {}
        self._made: dict[str, str] = {}
        self._ticking = Ticking(Silent())
        self._session: Session | None = None

    def _open(self, anew: bool = False) -> Session:
        """Open all models. anew: make every variant here, whatever others have left."""
        self._spent, self._hashes = set(), {}
        found = {} if anew else find_made(self._plans, self._folders)
        self._made = {name: sha256 for name, (_, sha256) in found.items()}
        with report_to(self._ticking):
            made = {name: model for name, (model, _) in found.items()}
            opened = open_session(
                self._plans, self._folders, self._ticking, lambda folder, _: OutboxStore(folder / TABLES), made
            )
        self._session = opened
        self._outcomes = dict(zip([plan.name for plan in self._plans], opened.outcomes, strict=True))
        return opened

    def run(self, unit: Unit) -> Computed | Mapping[str, Described | Wrong]:
        """The rows of a unit."""
        if unit.kind == DESCRIBE:
            made_here = self._session is not None and not self._made and not self._spent
            session = self._session if self._session is not None and made_here else self._open(anew=True)
            return {name: self._describe(session, self._outcomes[name]) for name in unit.variants}
        spent = self._spent & set(unit.variants) and unit.kind != ARTIFACT.kind
        session = self._open() if self._session is None or spent else self._session
        pairs = [pair for name in unit.variants if isinstance(pair := self._outcomes[name], LoadedPair)]
        before = {id(pair): dict(pair.observed.seconds) for pair in pairs}
        with report_to(self._ticking):
            session.run([PlannedUnit(suite=unit.suite, name=unit.name, kind=unit.kind)], pairs)
        if unit.kind == ARTIFACT.kind:
            self._spent |= set(unit.variants)
        return Computed(
            rows={_name(pair): self._collect(pair, unit) for pair in pairs},
            inputs={_name(pair): hash_inputs(pair.facts) for pair in pairs},
            reports={
                (_name(pair), suite): self._hash_report(pair, suite) for pair in pairs for suite in _reported(pair)
            },
            errors={_name(pair): _describe_error(pair.error) for pair in pairs if pair.error is not None},
            seconds={_name(pair): _subtract(pair.observed.seconds, before[id(pair)]) for pair in pairs},
            made=self._made,
        )

    def warm(self) -> None:
        """See harness.cluster.host.Session."""
        if self._session is None:
            self._open()

    def verify(self) -> None:
        """See harness.cluster.host.Session."""
        if self._session is None:
            return
        if not self._spent:
            self._session.verify_unchanged()
        for outcome in self._outcomes.values():
            if isinstance(outcome, LoadedPair) and outcome.error is not None:
                raise outcome.error

    def _describe(self, session: Session, outcome: LoadedPair | HarnessError) -> Described | Wrong:
        if isinstance(outcome, HarnessError):
            return _describe_error(outcome)
        samples = {name: Sample.of_documents(documents) for name, documents in session.documents.items()}
        units = tuple(session.list_units(outcome))
        folder = outcome.store.folder.parent
        made = leave_made(outcome.variant, folder) if takes_documents(outcome.observed.plan) else ""
        return Described(outcome.observed.plan, outcome.facts, units, samples, made)

    def _collect(self, pair: LoadedPair, unit: Unit) -> list[Rows]:
        """What the pair committed. The report of a pass comes only if it is asked for."""
        return [
            Rows(suite, name, tables)
            for suite in pair.store.suites()
            for name, tables in _outbox(pair, suite).take()
            if name != SETUP
        ] + [
            Rows(suite, SETUP, encode_unit(SETUP, _outbox(pair, suite).units[SETUP], {}))
            for suite in _reported(pair)
            if unit.report
        ]

    def _hash_report(self, pair: LoadedPair, suite: str) -> str:
        key = _name(pair), suite
        if key not in self._hashes:
            self._hashes[key] = hash_frames(_outbox(pair, suite).units[SETUP])
        return self._hashes[key]


def _outbox(pair: LoadedPair, suite: str) -> Outbox:
    outbox = pair.store.sink(suite)
    assert isinstance(outbox, Outbox)  # noqa: S101 - this file opened it
    return outbox


def _reported(pair: LoadedPair) -> list[str]:
    """The suites whose pass has a report here."""
    return [suite for suite in pair.store.suites() if _outbox(pair, suite).done(SETUP)]


def _name(pair: LoadedPair) -> str:
    return pair.observed.plan.name


def _describe_error(error: HarnessError) -> Wrong:
    return Wrong(type(error).__name__, str(error))


def _subtract(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {stage: value - before.get(stage, 0.0) for stage, value in after.items() if value != before.get(stage)}
