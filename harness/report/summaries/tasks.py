"""Scores of tasks on both sides, and which items changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from harness.records import Measurement, Run
from harness.report import display
from harness.report.drawing import charts
from harness.report.drawing.scales import Scale, fit_scale
from harness.report.summaries.flips import Flip, Question, list_flips, read_questions
from harness.report.summaries.suite_tables import SuiteTables

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "task", "output_type", "doc_id", "metric", "better", "target", "reference_score", "variant_score",
    "reference_answer", "variant_answer", "reference_loglikelihoods", "variant_loglikelihoods",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One metric of one task: its measurement (None where it has none) and the items behind it."""

    task: str
    metric: str
    measurement: Measurement | None
    better: str
    items: int
    reference: float
    variant: float
    unscored: int
    lost: int
    gained: int
    flips: tuple[Flip, ...]
    share: bool
    """Whether scores are 0 or 1, so that their mean is a share of items."""


def read_tasks(suite: SuiteTables, run: Run, most_flips: int = 4) -> list[Task]:
    """Every (task, metric) of the suite in order of appearance; empty without the table.

    most_flips: how many lost items of each are listed; of those gained, half as many.
    """
    frame = suite.read("items", _COLUMNS)
    if frame is None:
        return []
    grouped = frame.groupby(["task", "metric"], sort=False, observed=True)
    questions = read_questions(suite)
    measured = {m.name: m for m in run.measurements if m.labels.get("suite", suite.name) == suite.name}
    return [
        _task(str(task), str(metric), rows, measured.get(f"tasks.{task}.{metric}"), questions, most_flips)
        for (task, metric), rows in grouped
    ]


def make_scale(found: Sequence[Task]) -> Scale:
    """One scale for the differences of all tasks, with zero on it."""
    ends: list[float] = [0.0]
    for task in found:
        m = task.measurement
        ends.append(task.variant - task.reference)
        ends += [end for end in (m.low, m.high) if end is not None] if m is not None and _is_difference(m) else []
    return fit_scale(ends)


def draw_difference(task: Task, scale: Scale) -> Markup:
    """The paired difference of one task with its interval."""
    m, change = task.measurement, task.variant - task.reference
    low, high = (m.low, m.high) if m is not None and _is_difference(m) else (None, None)
    hint = f"{task.task}: {display.points(change)}"
    if low is not None and high is not None:
        hint += f", interval {display.points(low)} to {display.points(high)}"
    tone = "variant"
    if low is not None and high is not None and (high < 0 or low > 0):
        tone = "better" if (low > 0) == (task.better != "lower") else "worse"
    return charts.interval(change, low, high, scale, 0.0, tone, hint)


def _is_difference(m: Measurement) -> bool:
    return m.non_finite is None and m.neutral == 0 and m.change is not None


def _task(
    task: str,
    metric: str,
    rows: pd.DataFrame,
    measurement: Measurement | None,
    questions: Mapping[tuple[str, int], Question],
    most: int,
) -> Task:
    reference, variant = rows["reference_score"], rows["variant_score"]
    better = str(rows["better"].iloc[0])
    change = (variant - reference) * (-1 if better == "lower" else 1)
    finite = np.isfinite(reference) & np.isfinite(variant)
    flips = list_flips(rows[change < 0], questions, True, most)
    flips += list_flips(rows[change > 0], questions, False, most // 2)
    return Task(
        task=task,
        metric=metric,
        measurement=measurement,
        better=better,
        items=len(rows),
        reference=float(reference.mean(skipna=False)),
        variant=float(variant.mean(skipna=False)),
        unscored=int((~finite).sum()),
        lost=int((change < 0).sum()),
        gained=int((change > 0).sum()),
        flips=tuple(flips),
        share=bool(reference.isin([0.0, 1.0]).all() and variant.isin([0.0, 1.0]).all()),
    )
