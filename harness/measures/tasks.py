"""The measure ``tasks``: scores of lm-eval tasks, paired item by item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from harness.data.task_sizes import TaskSize, task_sizes
from harness.errors import MeasureError
from harness.measures import ExtraWork, Sampled
from harness.measures._common.item_likelihoods import bits_per_byte, confidence, perplexity
from harness.measures._common.item_scores import flips, recovery, scores
from harness.measures._items import DERIVED, FURTHER, TASK_METRICS, Floats, Found, TaskScores
from harness.measures._shared import not_finite, require
from harness.records import Measurement, Metric, Skipped, find_metric
from harness.records.plan import TaskSettings

if TYPE_CHECKING:
    import pandas as pd

    from harness.records import ItemsSpec
    from harness.statistics import Intervals


class Tasks(TaskSettings, Sampled):
    """Scores of lm-eval tasks, paired item by item: scores, retained share, flipped answers, calibration.

    Intervals of 0/1 scores are valid even if no item changed; of a document that a task contains twice, one copy counts
    as evidence.
    """

    table: ClassVar[str] = "items"
    metrics: ClassVar[tuple[Metric, ...]] = TASK_METRICS
    paths: ClassVar[tuple[str, ...]] = ("include",)
    by_item: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...] | None] = (
        "task",
        "output_type",
        "doc_id",
        "doc_hash",
        "prompt_hash",
        "target_hash",
        "metric",
        "better",
        "reference_score",
        "variant_score",
        "reference_answer",
        "variant_answer",
        "reference_loglikelihoods",
        "variant_loglikelihoods",
        "weight",
        "skipped",
        "cut",
        "bos",
    )

    def probe_settings(self) -> dict[str, Any]:
        """All settings: the probe runs the tasks, the measure only computes metrics."""
        return {name: getattr(self, name) for name in TaskSettings.model_fields}

    def task_sizes(self) -> tuple[TaskSize, ...]:
        """Every task that it names, in order."""
        return task_sizes(self.tasks, self.include, self.items.max if self.items else self.limit)

    def item_sampling(self) -> ItemsSpec | None:
        """As the setting ``items`` says."""
        return self.items

    def work(self, documents: int | None) -> ExtraWork:
        """Items, and how many of them share a batch."""
        return replace(super().work(documents), at_once=self.batch_size)

    def least_work(self, documents: int | None) -> ExtraWork:
        """The items of every first look."""
        if self.items is None:
            return self.work(documents)
        sizes = [task.items for task in task_sizes(self.tasks, self.include, self.items.min)]
        return replace(self.work(documents), items=sum(size or 0 for size in sizes))

    def code_folders(self) -> tuple[str, ...]:
        """The folders and files of custom tasks: lm-eval imports the functions that they name with ``!function``."""
        return self.include

    def produces(self) -> tuple[Metric, ...]:
        """The derived metrics of every task, and the metrics that the task files declare."""
        names = (f"tasks.{task}.{name}" for task in self.tasks for name in DERIVED)
        return (*filter(None, (find_metric(name, self.metrics) for name in names)), FURTHER)

    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """Compute the measurements of every task and metric, in the order of the table.

        Raises MeasureError for a missing column and for a duplicate item.
        """
        require(table, self.columns or (), "items")
        key = ["task", "metric", "doc_id", "doc_hash", "prompt_hash", "target_hash"]
        twice = table[table.duplicated(key)]
        if not twice.empty:
            row = twice.iloc[0]
            raise MeasureError(
                f"task {row['task']}: document {row['doc_id']} is {row['metric']} twice in the items table, "
                "expected each item once"
            )
        results: list[Measurement | Skipped] = []
        ordered = table.sort_values("doc_id", kind="stable")
        for task, metric in table[["task", "metric"]].drop_duplicates().itertuples(index=False):
            rows = ordered[(ordered["task"] == task) & (ordered["metric"] == metric)]
            results += _measure_cell(TaskScores(str(task), str(metric), rows), intervals)
        return results


def _measure_cell(cell: TaskScores, intervals: Intervals) -> Found:
    """All measurements about one cell; NaN or infinity on a side makes each non-finite on that side."""
    whole = next((str(reason) for reason in cell.rows["skipped"] if reason), "")
    if whole:
        yield Skipped(measure=f"tasks.{cell.task}.{cell.metric}", reason=whole)
    elif not np.isfinite(cell.reference).all():
        yield from _not_finite(cell, "reference", cell.reference)
    elif not np.isfinite(cell.variant).all():
        yield from _not_finite(cell, "variant", cell.variant)
    elif cell.kind in ("bits", "perplexity"):
        yield from bits_per_byte(cell, intervals) if cell.kind == "bits" else perplexity(cell, intervals)
    else:
        yield from scores(cell, intervals)
        yield from recovery(cell, intervals)
        if cell.kind == "binary":
            yield from flips(cell, intervals)
        if cell.has_confidence:
            yield from confidence(cell, intervals)


def _not_finite(cell: TaskScores, side: Literal["reference", "variant"], scores: Floats) -> Found:
    what = f"{(~np.isfinite(scores)).sum()} of {len(scores)} items gave NaN or infinity on the {side}'s side"
    yield not_finite(cell.main(), side, what, cell.count)
    if cell.kind == "perplexity":
        yield not_finite(cell.ratio(), side, what, cell.count)
    names = {"binary": ("recovery", "flips", "flips_to_wrong", "flips_to_right"), "graded": ("recovery",)}
    for name in (*names.get(cell.kind, ()), *(("ece", "brier") if cell.has_confidence else ())):
        yield not_finite(cell.derive_metric(name), side, what, cell.count, cell.label())
