"""The reference against itself, again and again, with other documents, batch sizes and orders on the two sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from harness.data.encoding import EncodedDocument
from harness.judge import judge
from harness.lockstep.arrangement import Arrange
from harness.lockstep.batches import Batch
from harness.lockstep.driver import shared_pass
from harness.measures import Measure
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.plan import load_gate, load_suite
from harness.planning.specs import GateSpec, SuiteSpec
from harness.probes import Context
from harness.probes.items import Items
from harness.records import Measurement, ModelSpec, Skipped, Verdict
from harness.records.conclusion import overall
from harness.records.patterns import could_match
from harness.running.pairs import encode_suite
from harness.tables.memory import MemoryTables

SUITE, GATE = "selftest", "ship"
NOT_RUN = ("artifact.", "comparability.", "weights.", "generation.")
BUDGETS = (256, 512, 1024, 2048)
"""Positions in a batch of the reference."""
ITEM_BATCHES = (1, 5, 16, 40)
"""Prompts in a batch of the tasks."""


class Silent:
    """Progress that nobody sees."""

    def step(self, what: str, done: int, of: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Compared:
    """One run: how it was drawn, what the gate said, and the effects that it saw."""

    seed: int
    documents: int
    budget: int
    parts: int
    items: tuple[int, int] | None
    verdict: str
    unaware: str
    """The verdict of a judge who does not know that both sides are the same bytes."""
    verdicts: tuple[Verdict, ...]
    effects: dict[str, float]


@dataclass(frozen=True)
class Setting:
    """What stays the same from run to run. answers: tables of the tasks by prompts in a batch."""

    reference: LoadedModel
    suite: SuiteSpec
    documents: Sequence[EncodedDocument]
    gate: GateSpec
    answers: dict[int, pd.DataFrame]


def setting(tasks: bool = True) -> Setting:
    """The embedded model, the suite selftest and the gate ship; without tasks, their rules are left out."""
    suite, gate = load_suite(SUITE, Path()), load_gate(GATE, Path())
    # Only the shared pass and tasks are run here: nothing is saved, and nothing of files, weights or texts is known.
    rules = tuple(spec for spec in gate.rules if not spec.rule.metric.startswith(NOT_RUN))
    gate = gate.model_copy(update={"rules": rules})
    reference = load(ModelSpec(model="pocket"), "pocket")
    answers = {}
    for probe in suite.probes if tasks else ():
        if isinstance(probe, Items):
            for size in ITEM_BATCHES:
                kept = MemoryTables()
                probe.model_copy(update={"batch_size": size}).observe(Context(reference, [reference], [kept], Silent()))
                table = kept.read("items")
                assert table is not None
                answers[size] = table
    if not tasks:
        kept_rules = tuple(spec for spec in gate.rules if not could_match(spec.rule.metric, "tasks.*"))
        gate = gate.model_copy(update={"rules": kept_rules})
    return Setting(reference, suite, encode_suite(suite, reference), gate, answers)


def shuffled(generator: np.random.Generator, parts: list[int]) -> Arrange:
    """Documents of a batch in any order, in parts of any size."""

    def arrange(batch: Batch) -> list[Batch]:
        order = [batch.documents[place] for place in generator.permutation(len(batch.documents))]
        made = []
        while order:
            size = int(generator.integers(1, len(order) + 1))
            made.append(Batch(batch.index, tuple(order[:size])))
            order = order[size:]
        parts.append(len(made))
        return made

    return arrange


def compare(made: Setting, seed: int, documents: int, together: int) -> list[Compared]:
    """``together`` runs against one pass of the reference. The seed fixes documents, batches and orders."""
    generator = np.random.default_rng(seed)
    chosen = [made.documents[place] for place in generator.permutation(len(made.documents))[:documents]]
    budget = int(generator.choice(BUDGETS))
    parts: list[list[int]] = [[] for _ in range(together)]
    kept = [MemoryTables() for _ in range(together)]
    probes = [probe for probe in made.suite.probes if probe.runs == "shared_pass"]
    variants = [replace(made.reference, name=f"again {number}") for number in range(together)]
    shared_pass(
        made.reference, variants, chosen, probes, kept, Silent(), batch_tokens=budget, kernel="eager",
        arranged=[shuffled(generator, own) for own in parts],
    )  # fmt: skip
    ran = zip(kept, parts, strict=True)
    return [_judged(made, seed, generator, tables, chosen, budget, own) for tables, own in ran]


def _judged(
    made: Setting,
    seed: int,
    generator: np.random.Generator,
    tables: MemoryTables,
    chosen: Sequence[EncodedDocument],
    budget: int,
    parts: Sequence[int],
) -> Compared:
    sizes, items = None, None
    if made.answers:
        left, right = generator.choice(len(ITEM_BATCHES), 2, replace=False)
        sizes = (ITEM_BATCHES[left], ITEM_BATCHES[right])
        items = crossed(made.answers[sizes[0]], made.answers[sizes[1]])
    found: list[Measurement | Skipped] = []
    for measure in made.suite.measures:
        assert isinstance(measure, Measure)
        table = items if measure.table == "items" else tables.read(measure.table, measure.columns)
        if table is not None:
            found += measure.measure(table)
    measurements = [entry for entry in found if isinstance(entry, Measurement)]
    skipped = [entry for entry in found if isinstance(entry, Skipped)]
    verdicts, unaware = (judge([made.gate], measurements, skipped, identical) for identical in (True, False))
    effects: dict[str, float] = {}
    for entry in measurements:
        if entry.effect is not None and entry.unit != "dB" and not entry.not_judged:
            effects[entry.name] = max(entry.effect, effects.get(entry.name, 0.0))
    return Compared(
        seed, len(chosen), budget, sum(parts), sizes, overall(verdicts)[0], overall(unaware)[0], verdicts, effects
    )


def crossed(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    """The answers of the reference with one number of prompts in a batch, beside those with another."""
    keys = ["task", "metric", "doc_id"]
    first, second = (table.sort_values(keys, kind="stable").reset_index(drop=True) for table in (left, right))
    assert first[keys].equals(second[keys])
    own = [name for name in first.columns if name.startswith("variant_")]
    return first.assign(**{name: second[name] for name in own})
