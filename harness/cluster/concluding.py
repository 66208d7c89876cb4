"""What the tables of a variant come to, by whoever can read them: measurements, verdicts, and outputs like the report.

The head gives every variant whose units are all stored to a worker. That writes nothing where the run is: it returns
the sums of the passes, the judged run, and the files of outputs, which the head writes once all workers have been asked
whether their models are still what they were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from harness.cluster.messages import Rows, Wrong
from harness.cluster.workers import Unit
from harness.concluding.conclusion import conclude, passes_tokens, run_pass
from harness.concluding.failing import explain_stop
from harness.concluding.pair import Pair, PairFacts, begin
from harness.concluding.pair import Unit as PlannedUnit
from harness.errors import HarnessError, TableError
from harness.lockstep.stages import Wanted
from harness.planning.sampling.sample import Sample
from harness.planning.specs import Plan
from harness.running.publishing import Judged, judge_variant, make_outputs
from harness.running.units import ARTIFACT, stages_of
from harness.system.stopwatch import keep_time, measure_time
from harness.tables.overlay import Overlay, read_version
from harness.tables.store import TABLES
from harness.write import StoredTables
from harness.writers import Writer

CONCLUDE = "conclude"
"""The kind and name of the unit in which a worker concludes a variant."""
BLOCK = "shared_pass"
"""The kind of the units of a pass."""


@dataclass(frozen=True)
class Occasion:
    """What a run says of the check that it belongs to. checks: by variant, how often its folder was held. shared:
    seconds of stages that are none of a single variant. home: the head's, which is masked in what is written."""

    started: datetime
    checks: Mapping[str, int]
    shared: Mapping[str, float] = field(default_factory=dict)
    home: str = ""


@dataclass(frozen=True)
class Evidence:
    """What a variant is judged by beside its tables. samples: by suite. version: of its tables, once all are stored.

    writers: the portable ones among its outputs.
    """

    plan: Plan
    facts: PairFacts
    units: Sequence[PlannedUnit]
    samples: Mapping[str, Sample]
    folder: Path
    version: str
    seconds: Mapping[str, float]
    writers: Sequence[Writer]
    occasion: Occasion


@dataclass(frozen=True)
class Concluded:
    """What came of a variant. sums: of its passes, to be stored. judged: None where the tables could not be read."""

    judged: Judged | Wrong | None
    sums: Sequence[Rows] = ()


def conclude_tables(pair: Pair, units: Sequence[PlannedUnit], samples: Mapping[str, Sample]) -> None:
    """Add up the passes of a pair, take the looks at its tables, and measure. Raises TableError if a unit is missing,
    HarnessError if it cannot be measured."""
    name = pair.observed.plan.name
    for suite in pair.observed.plan.suites:
        if passes_tokens(suite, pair):
            stages, sample = stages_of(units, suite.name), samples[suite.name]
            run_pass(suite, sample, [pair], stages, [pair.store.sink(suite.name)], refuse_missing)
    kinds = (BLOCK, ARTIFACT.kind)
    alone = [unit for unit in units if unit.kind not in kinds and not unit.stage and not explain_stop(pair)]
    if missing := [f"{unit.suite} {unit.name}" for unit in alone if not pair.store.sink(unit.suite).done(unit.name)]:
        raise TableError(f"{name}: no rows of {', '.join(missing)}, which were to be computed; run the check again")
    conclude(pair)


def refuse_missing(wanted: Wanted) -> None:
    """Raise TableError that names blocks which were to be computed and have no rows."""
    names = ", ".join(block.unit for block, _ in wanted)
    raise TableError(f"no rows of {names}, which were to be computed; run the check again")


class Concluder:
    """In a worker: concludes variants from their tables, without any model."""

    def warm(self) -> None:
        """Nothing is opened before it is needed."""

    def verify(self) -> None:
        """Nothing stays open."""

    def run(self, unit: Unit) -> Concluded:
        """The conclusion of the one variant of a unit."""
        asked = unit.about
        assert isinstance(asked, Evidence)  # noqa: S101 - the head made it
        try:
            if read_version(asked.folder / TABLES) != asked.version:
                return Concluded(None)
            store = Overlay(asked.folder / TABLES, asked.facts.data_key)
        except TableError:  # a folder that this node does not share
            return Concluded(None)
        try:
            with keep_time() as stopwatch, _mask_home(asked.occasion.home):
                stopwatch.shared |= asked.occasion.shared
                judged = self._judge(asked, store)
        except HarnessError as error:
            return Concluded(Wrong(type(error).__name__, str(error)))
        return Concluded(judged, [Rows(suite, name, files) for (suite, name), files in store.added.items()])

    def _judge(self, asked: Evidence, store: Overlay) -> Judged:
        observed = begin(asked.plan, asked.facts, store, dict(asked.seconds))
        conclude_tables(Pair(facts=asked.facts, store=store, observed=observed), asked.units, asked.samples)
        with measure_time({}, "outputs"):
            run = judge_variant(observed, asked.occasion.started, asked.occasion.checks[asked.plan.name])
            tables = StoredTables(store.folder, store.data_key, store)
            return Judged(run, make_outputs(run, tables, asked.writers))


@contextmanager
def _mask_home(home: str) -> Iterator[None]:
    """Have the home folder of the head masked, whoever this worker runs as."""
    own = os.environ.get("HOME")
    os.environ["HOME"] = home
    try:
        yield
    finally:
        if own is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = own
