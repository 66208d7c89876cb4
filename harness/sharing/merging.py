"""Puts the shards of one whole together: their units are those of one process, and so is what they come to.

    all shard.json agree ─▶ adopt each unit from its shard, with the looks ─▶ conclude

No model is used.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from harness.artifacts.saving import save_folder
from harness.concluding.conclusion import conclude, draws_items, passes_tokens, run_pass
from harness.concluding.extending import ItemRounds
from harness.concluding.pair import Pair, PairFacts, begin
from harness.concluding.saved_files import FOLDER as ARTIFACT_FOLDER
from harness.concluding.saved_files import find_lost_files
from harness.errors import MergeError
from harness.lockstep.stages import SETUP, Wanted
from harness.planning.sampling.sample import Sample
from harness.planning.specs import Plan, SuiteSpec
from harness.probes import name_unit
from harness.records import Note
from harness.running.opening import apply_openings
from harness.running.units import ARTIFACT, stages_of
from harness.sharing.shards import Part, Shard, Share, hash_plan
from harness.tables.store import TABLES, Store, StoreReader


def check_parts(name: str, parts: Sequence[Part]) -> None:
    """Raise MergeError unless the shards of a variant are all parts of one whole, each once."""
    first = parts[0]
    numbers = [part.shard.number for part in parts]
    for part in parts[1:]:
        if part.shard.of != first.shard.of:
            raise MergeError(f"{name}: {part} and {first} are parts of different wholes, expected the same number")
    for before, part in pairwise(parts):
        if before.shard.number == part.shard.number:
            raise MergeError(f"{name}: {part} and {before} are the same part, expected each once")
    every = range(1, first.shard.of + 1)
    if missing := [str(Share(number, first.shard.of)) for number in every if number not in numbers]:
        raise MergeError(
            f"{name}: no folder of shard {', '.join(missing)}, expected all of 1/{first.shard.of} to "
            f"{first.shard.of}/{first.shard.of}"
        )
    for part in parts[1:]:
        if differing := list(_compare(first.shard, part.shard)):
            raise MergeError(
                f"{name}: {part} differs from {first} in {'; '.join(differing)}, so their rows do not belong together; "
                "compute all shards with the same files and the same versions on machines of one kind"
            )


def _compare(first: Shard, other: Shard) -> Iterator[str]:
    """What two shards must share and do not."""
    if first.harness != other.harness:
        yield f"the version of harness ({first.harness}, {other.harness})"
    if first.plan_sha256 != other.plan_sha256:
        yield "what their variant files ask for"
    if first.rounding != other.rounding:
        names = [shard.facts.environment.processor for shard in (first, other)]
        yield f"how their processors round ({', '.join(names)})"
    yield from _compare_facts(first.facts, other.facts)
    if first.units != other.units:
        yield "the units of work"


def _compare_facts(first: PairFacts, other: PairFacts) -> Iterator[str]:
    """In what two processes differ that describe the same pair; the names of their processors are no difference."""
    environments = [facts.environment.model_dump(mode="json", exclude={"processor"}) for facts in (first, other)]
    flat = [each | each.pop("packages") for each in environments]
    for key in dict.fromkeys([*flat[0], *flat[1]]):
        values = [each.get(key) for each in flat]
        if values[0] != values[1]:
            yield f"{key} ({values[0]}, {values[1]})"
    parts = dict.fromkeys([*first.depends, *other.depends])
    parts.pop("environment", None)
    differing = [part for part in parts if first.depends.get(part) != other.depends.get(part)]
    yield from (f"the {part}" for part in differing)
    said = PairFacts.model_fields.keys() - {"environment", "data_key", "depends"}
    if not differing and (names := sorted(name for name in said if getattr(first, name) != getattr(other, name))):
        yield f"what they say of {', '.join(names)}"


def merge_parts(plan: Plan, parts: Sequence[Part], folder: Path) -> Pair:
    """Adopt the units of all shards into the tables of one run, and conclude from them. Raises HarnessError.

    parts: as ``check_parts`` takes them.
    """
    first = parts[0].shard
    if hash_plan(plan) != first.plan_sha256:
        raise MergeError(
            f"{plan.source}: found another plan than when the shards were computed, expected the same; undo the change "
            "of this file or of those that it names, or compute the shards again"
        )
    settled = apply_openings(plan, first.openings)
    store = Store(folder / TABLES, first.facts.data_key)
    try:
        seconds = _add_up(part.shard.seconds for part in parts)
        pair = Pair(facts=first.facts, store=store, observed=begin(settled, first.facts, store, seconds))
        pair.observed.notes += _note_processors(parts)
        _Adoption(pair, store, parts).adopt_all(settled.suites, folder)
        conclude(pair)
    finally:
        store.close()
    if lost := find_lost_files(pair.observed.artifact, folder):
        raise MergeError(
            f"{plan.name}: {', '.join(lost)} of the artifact are not in the folder of the shard that saved it"
        )
    return pair


def _note_processors(parts: Sequence[Part]) -> Iterator[Note]:
    """Which processors computed the shards, if it was not one kind."""
    kinds = Counter(part.shard.facts.environment.processor for part in parts)
    if len(kinds) > 1:
        shares = ", ".join(f"{count} of {len(parts)} on {kind}" for kind, count in kinds.items())
        text = f"shards were computed on processors of several kinds, which round fixed computations alike: {shares}"
        yield Note(topic="shards", text=text)


def _add_up(clocks: Iterator[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for seconds in clocks:
        for stage, value in seconds.items():
            total[stage] = total.get(stage, 0.0) + value
    return total


class _Adoption:
    """Takes each unit from the shard that computed it."""

    def __init__(self, pair: Pair, store: Store, parts: Sequence[Part]) -> None:
        self.pair, self.store, self.parts = pair, store, parts
        self.units = parts[0].shard.units
        self.readers = [StoreReader(part.folder / TABLES, part.shard.facts.data_key) for part in parts]
        self.owners = {
            (unit.suite, unit.name): index
            for index, part in enumerate(parts)
            for unit in part.shard.share.select(self.units)
        }

    def adopt_all(self, suites: Sequence[SuiteSpec], folder: Path) -> None:
        """Adopt everything that one process would have computed."""
        for suite in suites:
            self._adopt_unlisted(suite.name)
        for suite in suites:
            mine = [unit for unit in self.units if unit.suite == suite.name]
            staged = {unit.kind for unit in mine if draws_items(suite, unit.kind)} | {"shared_pass"}
            self._adopt(suite.name, [unit.name for unit in mine if unit.kind not in staged])
            if passes_tokens(suite, self.pair):
                self._adopt_pass(suite)
            first = [unit.name for unit in mine if draws_items(suite, unit.kind) and unit.stage == 0]
            self._adopt_items(suite, first)
        self._copy_artifact(folder)

    def _adopt_pass(self, suite: SuiteSpec) -> None:
        self._check_reports(suite.name)
        sink = self.store.sink(suite.name)
        documents = sink.read("documents")
        sample = Sample.of_table(documents) if documents is not None else Sample({}, {})

        def adopt(wanted: Wanted) -> None:
            self._adopt(suite.name, [block.unit for block, _ in wanted])

        run_pass(suite, sample, [self.pair], stages_of(self.units, suite.name), [sink], adopt)

    def _adopt_items(self, suite: SuiteSpec, first: Sequence[str]) -> None:
        """Adopt the stages of every task as far as rules need them."""
        self._adopt(suite.name, first)
        for wanted in ItemRounds.of(suite, self.pair):
            self._adopt(suite.name, [name_unit(task, stage) for task, stage in wanted])

    def _adopt(self, suite: str, names: Sequence[str]) -> None:
        for name in names:
            owner = self.owners[suite, name]
            if not self.store.done(suite, name):
                if not self.readers[owner].holds(suite, name):
                    raise MergeError(
                        f"{self.parts[owner]}: the unit {name} of suite {suite} is missing; compute that shard again: "
                        "it resumes"
                    )
                self.store.adopt(self.readers[owner], suite, name)

    def _check_reports(self, suite: str) -> None:
        """Adopt the report of a pass, which every shard with a part of it has. Raises MergeError if they differ."""
        reports = {
            index: [(part.table, part.sha256) for part, _ in reader.load_unit(suite, SETUP)]
            for index, reader in enumerate(self.readers)
        }
        made = [index for index, found in reports.items() if found]
        for index in made[1:]:
            if reports[index] != reports[made[0]]:
                both = zip(reports[index], reports[made[0]], strict=True)
                differing = [table for (table, left), (_, right) in both if left != right]
                raise MergeError(
                    f"{self.parts[index]} and {self.parts[made[0]]} ran the pass of suite {suite} under other "
                    f"conditions (the tables {', '.join(differing)} of its report differ: kernels, determinism, "
                    "modules or documents), so their rows do not belong together"
                )
        if made and not self.store.done(suite, SETUP):
            self.store.adopt(self.readers[made[0]], suite, SETUP)

    def _adopt_unlisted(self, suite: str) -> None:
        """Adopt what the process that observed the artifact has committed beside the units that were shared out."""
        owner = self.owners[ARTIFACT.suite, ARTIFACT.name]
        for name in self.readers[owner].units(suite):
            if (suite, name) not in self.owners and name != SETUP and not self.store.done(suite, name):
                self.store.adopt(self.readers[owner], suite, name)

    def _copy_artifact(self, folder: Path) -> None:
        source = self.parts[self.owners[ARTIFACT.suite, ARTIFACT.name]].folder / ARTIFACT_FOLDER
        if source.is_dir():
            save_folder(folder / ARTIFACT_FOLDER, lambda target: _copy(source, target))


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
