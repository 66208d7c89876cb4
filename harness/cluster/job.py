"""In the head: what a check consists of, which of it may be computed now, and what its tables come to.

    describe ─▶ noise floors, probes that run alone, blocks up to the first look ─▶ look ─▶ … ─▶ artifacts ─▶ conclude

No model is opened here. Workers conclude, each variant once it is complete; the head does where they cannot read its
tables. Looks are those of one process: at a stage whose units are all there, whoever computed them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.artifacts.saving import discard_stale
from harness.cluster.concluding import BLOCK, CONCLUDE, Concluded, Evidence, Occasion, conclude_tables
from harness.cluster.dispatch import describe_difference, describe_failure
from harness.cluster.drawing import Draw, Rounds, kind_of, plan_draws
from harness.cluster.handing_on import discard_made
from harness.cluster.messages import (
    DESCRIBE,
    Computed,
    Described,
    Rows,
    Wrong,
    hash_frames,
    hash_inputs,
    is_harness_error,
    restore_error,
)
from harness.cluster.workers import Failed, Unit
from harness.concluding.noise_floor import UNIT as FLOOR
from harness.concluding.pair import Observed, Pair, begin
from harness.concluding.pair import Unit as PlannedUnit
from harness.concluding.saved_files import FOLDER as ARTIFACT_FOLDER
from harness.concluding.saved_files import find_lost_files
from harness.errors import ClusterError, HarnessError, TableError
from harness.lockstep.stages import SETUP
from harness.planning.sampling.sample import Sample
from harness.planning.specs import Plan
from harness.running.publishing import Judged
from harness.running.units import ARTIFACT, FILES
from harness.tables.overlay import read_version
from harness.tables.store import TABLES, Store
from harness.write import add_suited

TIMED = "timings"
LAST = (ARTIFACT.kind, FILES.kind)
"""Kinds of units of which every variant has one, after all others: what it saves, or else its files as they are."""
REPORT_TABLES = ("documents", "pass", "notes", "unpaired")
ALONE_COST, FLOOR_COST = 8192.0, 65536.0
"""In tokens: what cannot be split goes first, and noise floors before all else, since looks wait for them."""


@dataclass
class _Set:
    """Variants whose models are open together. open: units that are listed and not closed."""

    key: str
    plans: Sequence[Plan]
    draws: Mapping[tuple[str, str], Draw] = field(default_factory=dict)
    """By suite and kind of unit."""
    rounds: Mapping[str, Rounds] = field(default_factory=dict)
    open: int = 0
    saved: bool = False


class CheckJob:
    """A check as a job of the dispatcher (see harness.cluster.dispatch.Job).

    sets: plans by the key of their models. folders: run folders by the name of the variant. quiet: the label of the
    worker that measures times; empty if there is none. occasion: what workers must know to conclude variants; without
    it the head does.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[Plan]],
        folders: Mapping[str, Path],
        quiet: Callable[[], str] = str,
        occasion: Occasion | None = None,
    ) -> None:
        self._sets = {key: _Set(key, plans) for key, plans in sets.items()}
        self._folders, self._quiet, self._occasion = folders, quiet, occasion
        self._pairs: dict[str, Pair] = {}
        self._stores: dict[str, Store] = {}
        self._errors: dict[str, HarnessError] = {}
        self._units: dict[str, tuple[PlannedUnit, ...]] = {}
        self._samples: dict[str, Mapping[str, Sample]] = {}
        self._inputs: dict[str, Mapping[str, str]] = {}
        self._reports: dict[tuple[str, str], str] = {}
        self._made: dict[str, str] = {}
        self._judged: dict[str, Judged] = {}

    def close(self) -> None:
        """Let go of all tables, and of variants that were handed on."""
        for store in self._stores.values():
            store.close()
        for name in self._made:
            discard_made(self._folders[name])

    def next_units(self, closed: Unit | None) -> Iterable[Unit]:
        """See Job."""
        if closed is None:
            units = [self._make(each.key, "", DESCRIBE, DESCRIBE, self._names(each)) for each in self._sets.values()]
        elif closed.kind == CONCLUDE:
            return []
        else:
            current = self._sets[closed.holds]
            current.open -= 1
            units = self._begin(current) if closed.kind == DESCRIBE else self._go_on(current, closed)
        for unit in units:
            self._sets[unit.holds].open += 1
        complete = closed.variants if closed is not None and closed.kind in LAST else ()
        return [*units, *(unit for name in complete for unit in self._ask_for_conclusion(name))]

    def trim(self, unit: Unit) -> Unit | None:
        """See Job."""
        left = tuple(name for name in unit.variants if name not in self._errors)
        if not left:
            return None
        report = unit.kind == BLOCK and any((name, unit.suite) not in self._reports for name in left)
        return unit if left == unit.variants and report == unit.report else replace(unit, variants=left, report=report)

    def find_fault(self, unit: Unit, result: object) -> str:
        """See Job."""
        if not isinstance(result, Computed):
            return ""
        for name, inputs in result.inputs.items():
            if differing := describe_difference(self._inputs[name], inputs):
                return f"{name} was computed from other inputs ({differing})"
        for name, sha256 in result.made.items():
            if sha256 != self._made.get(name):
                return f"{name} was read from a file that is not the one in which it was handed on (SHA-256 {sha256})"
        for key, found in result.reports.items():
            if self._reports.get(key, found) != found:
                return (
                    f"{key[0]}: the pass of suite {key[1]} ran under other conditions there: other kernels, or a "
                    "reference that does not repeat itself"
                )
        return ""

    def commit(self, unit: Unit, result: object) -> None:
        """See Job."""
        if isinstance(result, Concluded):
            self._take_conclusion(unit.variants[0], result)
            return
        if not isinstance(result, Computed):
            self._meet(result)
            return
        for name, rows in result.rows.items():
            for each in rows:
                self._store_rows(name, each, unit.kind)
            self._add_seconds(name, result.seconds[name])
        for name, wrong in result.errors.items():
            self._errors[name] = restore_error(wrong)
        if unit.report:
            self._reports |= result.reports

    def give_up(self, failed: Failed) -> Iterable[Unit]:
        """See Job. What fails for several variants is computed for each of them alone, so that one does not affect the
        others; a variant that fails alone keeps its error."""
        unit = failed.unit
        wrong = Wrong(failed.error, failed.reason.partition(": ")[2])
        if not is_harness_error(failed.error):
            raise ClusterError(describe_failure(failed))
        if unit.kind == DESCRIBE:
            raise restore_error(wrong)
        if len(unit.variants) == 1:
            self._errors[unit.variants[0]] = restore_error(wrong)
            return ()
        current = self._sets[unit.holds]
        current.open += len(unit.variants)
        if (draw := current.draws.get(_key_of(unit))) is not None and unit.name in draw.open:
            draw.open[unit.name] += len(unit.variants)
        return [replace(unit, variants=(name,)) for name in unit.variants]

    def conclude(self) -> list[Observed | Judged | HarnessError]:
        """What came of every plan."""
        for name, pair in self._pairs.items():
            if name not in self._errors:
                self._conclude(name, pair)
        names = [plan.name for each in self._sets.values() for plan in each.plans]
        known = {name: pair.observed for name, pair in self._pairs.items()} | self._judged | self._errors
        return [known[name] for name in names]

    def _ask_for_conclusion(self, name: str) -> list[Unit]:
        """The unit in which a worker concludes a variant all of whose units are stored."""
        if self._occasion is None or name in self._errors or name not in self._pairs:
            return []
        pair, folder = self._pairs[name], self._folders[name]
        evidence = Evidence(
            pair.observed.plan,
            pair.facts,
            self._units[name],
            self._samples[name],
            folder,
            read_version(folder / TABLES),
            dict(pair.observed.seconds),
            [writer for writer in add_suited(pair.observed.plan.outputs, os.environ) if writer.portable],
            self._occasion,
        )
        return [Unit("", CONCLUDE, (name,), CONCLUDE, ALONE_COST, about=evidence)]

    def _take_conclusion(self, name: str, found: Concluded) -> None:
        if isinstance(found.judged, Wrong):
            self._errors[name] = restore_error(found.judged)
        elif found.judged is not None:
            for rows in found.sums:
                self._store_rows(name, rows, CONCLUDE)
            self._judged[name] = replace(found.judged, messages=self._pairs[name].observed.messages)

    def _conclude(self, name: str, pair: Pair) -> None:
        """Conclude a variant that no worker has, for want of its tables."""
        if name not in self._judged:
            observed = begin(pair.observed.plan, pair.facts, pair.store, pair.observed.seconds)
            pair = self._pairs[name] = Pair(facts=pair.facts, store=pair.store, observed=observed)
        try:
            if name not in self._judged:
                conclude_tables(pair, self._units[name], self._samples[name])
        except HarnessError as error:
            self._errors[name] = error
            return
        judged = self._judged.get(name)
        artifact = judged.run.artifact if judged else pair.observed.artifact
        if lost := find_lost_files(artifact, self._folders[name]):
            self._errors[name] = ClusterError(
                f"{name}: a worker saved {', '.join(lost)} of the artifact, and they are not in {self._folders[name]}; "
                "expected run folders (--out) that the head and all nodes share"
            )

    def _meet(self, described: object) -> None:
        """Open the tables of variants that are known now."""
        found: Mapping[str, Described | Wrong] = described  # type: ignore[assignment]
        for name, each in found.items():
            if isinstance(each, Wrong):
                self._errors[name] = restore_error(each)
                continue
            try:
                store = Store(self._folders[name] / TABLES, each.facts.data_key)
            except TableError as error:
                self._errors[name] = error
                continue
            self._stores[name], self._units[name], self._samples[name] = store, each.units, each.samples
            self._pairs[name] = Pair(facts=each.facts, store=store, observed=begin(each.plan, each.facts, store, {}))
            self._inputs[name] = hash_inputs(each.facts)
            self._made |= {name: each.made} if each.made else {}
            self._recall_reports(name, store)

    def _recall_reports(self, name: str, store: Store) -> None:
        """The reports of passes that an earlier process has committed."""
        for suite in store.suites():
            if store.done(suite, SETUP):
                frames = {table: store.read(suite, table) for table in REPORT_TABLES}
                self._reports[name, suite] = hash_frames({n: frame for n, frame in frames.items() if frame is not None})

    def _begin(self, current: _Set) -> list[Unit]:
        """All units that wait for nothing."""
        names = [name for name in self._names(current) if name in self._pairs]
        if not names:
            return []
        current.rounds = {name: Rounds(self._pairs[name], self._units[name], self._samples[name]) for name in names}
        current.draws = plan_draws(self._pairs[names[0]].observed.plan.suites, current.rounds)
        return self._draw_on(current) or self._finish(current)

    def _go_on(self, current: _Set, closed: Unit) -> list[Unit]:
        """What the end of a unit makes possible."""
        draw = current.draws.get(_key_of(closed))
        if draw is None or closed.name not in draw.open:
            return self._finish(current)
        draw.open -= Counter([closed.name])
        return self._draw_on(current) or self._finish(current)

    def _draw_on(self, current: _Set) -> list[Unit]:
        """The next round of every draw that has ended one."""
        released: list[Unit] = []
        for draw in current.draws.values():
            while draw.ready:
                units = self._open_round(current, draw)
                draw.open.update(unit.name for unit in units)
                released += units
        return released

    def _open_round(self, current: _Set, draw: Draw) -> list[Unit]:
        """What the variants that still draw want next, and lack."""
        draw.free -= 1
        wanted = {(draw.suite.name, unit, name) for name in list(draw.rounds) for unit in self._ask(draw, name)}
        return self._list(current, lambda unit, name: (unit.suite, unit.name, name) in wanted)

    def _ask(self, draw: Draw, name: str) -> Sequence[str]:
        """The units of the next round of a variant; none if it needs none. One that cannot be judged keeps its
        error."""
        try:
            units = None if name in self._errors else next(draw.rounds[name], None)
        except HarnessError as error:
            self._errors[name], units = error, None
        if units is None:
            del draw.rounds[name]
        return units or ()

    def _finish(self, current: _Set) -> list[Unit]:
        """The artifacts of a set, once nothing else of it is open: saving may change a model. A variant that documents
        have stopped has none, also not an older one."""
        if current.open or current.saved:
            return []
        current.saved = True
        names = [name for name in self._names(current) if name in self._pairs and name not in self._errors]
        stopped = [name for name in names if current.rounds[name].stops]
        for name in stopped:
            try:
                discard_stale(self._folders[name] / ARTIFACT_FOLDER)
            except HarnessError as error:
                self._errors[name] = error
        last = [(FILES if name in stopped else ARTIFACT, name) for name in names]
        return [self._make(current.key, unit.suite, unit.name, unit.kind, (name,)) for unit, name in last]

    def _list(self, current: _Set, wants: Callable[[PlannedUnit, str], bool]) -> list[Unit]:
        """The units that some variants want and lack, each for all of them that do."""
        lacking: dict[tuple[str, str], tuple[PlannedUnit, list[str]]] = {}
        for name in (name for name in self._names(current) if name in self._pairs):
            for unit in self._units[name]:
                if wants(unit, name) and not self._stores[name].done(unit.suite, unit.name):
                    lacking.setdefault((unit.suite, unit.name), (unit, []))[1].append(name)
        return [
            self._make(current.key, unit.suite, unit.name, unit.kind, tuple(those), unit.tokens)
            for unit, those in lacking.values()
        ]

    def _make(self, key: str, suite: str, name: str, kind: str, variants: Sequence[str], tokens: int = 0) -> Unit:
        cost = float(tokens) or (FLOOR_COST if kind == FLOOR else ALONE_COST)
        needs = self._quiet() if kind == TIMED else ""
        return Unit(suite, name, tuple(variants), kind, cost * len(variants), needs, key)

    def _names(self, current: _Set) -> tuple[str, ...]:
        return tuple(plan.name for plan in current.plans)

    def _store_rows(self, name: str, rows: Rows, kind: str) -> None:
        """Commit the rows of a unit. Those of an artifact replace what an earlier run has found."""
        store, unit = self._stores[name], rows.unit
        if kind in LAST:
            stem, numbers = unit.rpartition("/")[0], iter(range(1, 10**9))
            unit = next(free for number in numbers if not store.done(rows.suite, free := f"{stem}/{number}"))
        if unit != SETUP or not store.done(rows.suite, unit):
            store.commit_files(rows.suite, unit, rows.tables)

    def _add_seconds(self, name: str, seconds: Mapping[str, float]) -> None:
        clock = self._pairs[name].observed.seconds
        for stage, value in seconds.items():
            clock[stage] = clock.get(stage, 0.0) + value


def _key_of(unit: Unit | PlannedUnit) -> tuple[str, str]:
    """What a unit belongs to that may be drawn: looks at documents need the noise floor too."""
    return unit.suite, kind_of(unit.kind)
