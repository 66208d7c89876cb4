"""The evidence for checking a gate: the metrics to be measured, an earlier run, the vocabulary, task choices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.engines.transformers import Transformers
from harness.errors import TableError
from harness.forecast.measured import Measured, complete_metric, list_measured
from harness.forecast.model_size import model_size
from harness.measures import load_metrics
from harness.planning.specs import Plan, SuiteSpec
from harness.records import Run
from harness.tables.store import StoreReader


@dataclass(frozen=True)
class Evidence:
    """The evidence against which a gate is checked.

    metrics: everything that will be measured, or can be if no suite is known (``sized`` is then false). suites: those
    that are known. chance: for each task, the score of guessing; only if the number of choices is known.
    """

    metrics: Sequence[Measured]
    sized: bool
    run: Run | None = None
    vocabulary: int | None = None
    chance: dict[str, float] = field(default_factory=dict)
    self_reference: str = ""
    dtype: str | None = None
    suites: Sequence[SuiteSpec] = ()


def gather_for_plan(plan: Plan, run: Run | None = None, folder: Path | None = None) -> Evidence:
    """For a variant file, with an earlier comparable run, if there is one, and its folder."""
    chance = _chance_of_suites(plan.suites) | (_chance_of_run(run, folder) if run and folder else {})
    vocabulary = _vocabulary(plan.reference.model, plan.reference.revision)
    same = f"{plan.source}: the variant is the reference, with no step" if _is_reference(plan) else ""
    dtype = plan.reference.dtype
    return Evidence(list_measured(plan.suites, run), True, run, vocabulary, chance, same, dtype, plan.suites)


def gather_for_suites(suites: Sequence[SuiteSpec], run: Run | None = None, folder: Path | None = None) -> Evidence:
    """For suites without a variant; without suites for the metrics of an earlier run, else for every installed
    metric."""
    chance = _chance_of_suites(suites) | (_chance_of_run(run, folder) if run and folder else {})
    vocabulary, same, dtype = None, "", None
    if run is not None:
        asked = run.asked.get("reference", {})
        model = os.path.expanduser(str(asked.get("model")))  # run.json holds no home folder
        vocabulary, dtype = _vocabulary(model, asked.get("revision")), run.reference.dtype
        same = f"the run {run.name}: both sides were the same bytes" if run.reference.same_as(run.variant) else ""
    if suites:
        metrics = list_measured(suites, run)
    elif run is not None:
        metrics = _read_measured(run)
    else:
        metrics = [Measured(metric, "", None) for metric in load_metrics()]
    return Evidence(metrics, bool(suites or run), run, vocabulary, chance, same, dtype, suites)


def _is_reference(plan: Plan) -> bool:
    variant, reference = plan.variant, plan.reference
    same_files = variant.model == "reference" or (
        _place(variant.model) == _place(reference.model) and variant.revision in (None, reference.revision)
    )
    unchanged = not variant.compress and variant.adapter is None and variant.engine.kind == Transformers.kind
    return same_files and unchanged and variant.dtype in (None, reference.dtype)


def _place(model: str) -> str:
    """The absolute path of a folder; any other name unchanged."""
    return os.path.realpath(model) if os.path.isdir(model) else model


def _read_measured(run: Run) -> list[Measured]:
    measurements = {m.name: m for m in run.measurements}
    listed = [Measured(complete_metric(run.metric(m.name), m), "", m.clusters) for m in measurements.values()]
    skipped = [Measured(run.metric(s.measure), "", None) for s in run.skipped if s.measure not in measurements]
    return listed + skipped


def _vocabulary(model: str, revision: str | None) -> int | None:
    size = model_size(model, revision)
    return None if isinstance(size, str) else size.vocabulary


def _chance_of_suites(suites: Sequence[SuiteSpec]) -> dict[str, float]:
    tasks = [task for suite in suites for measure in suite.measures for task in measure.task_sizes()]
    known = {task.name: task.choices for task in tasks if task.choices is not None}
    return {name: 1 / choices if choices else 0.0 for name, choices in known.items()}


def _chance_of_run(run: Run, folder: Path) -> dict[str, float]:
    """Score of guessing, from the number of choices of every item. Empty if the run has no tables."""
    place = (folder.parent if folder.suffix == ".json" else folder) / "tables"
    columns = ("task", "output_type", "reference_loglikelihoods")
    try:
        reader = StoreReader(place, run.data_key)
        tables = [reader.read(suite, "items", columns) for suite in reader.suites()]
    except TableError:
        return {}
    chance: dict[str, float] = {}
    for table in tables:
        if table is not None:
            choices = table[table["output_type"] == "multiple_choice"]
            shares = 1 / choices["reference_loglikelihoods"].map(len)
            chance |= {str(task): float(share) for task, share in shares.groupby(choices["task"]).mean().items()}
            generated = table[table["output_type"] == "generate_until"]["task"].unique()
            chance |= {str(task): 0.0 for task in generated}
    return chance
