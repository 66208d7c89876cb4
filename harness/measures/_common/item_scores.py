"""Metrics from scores of paired task items, 0/1 or graded: means, retained share of the reference's score, flips."""

from __future__ import annotations

import math

import numpy as np

from harness.measures._items import Found, TaskScores
from harness.measures._shared import make_sampled
from harness.records import Skipped
from harness.statistics import Interval, Intervals, mcnemar_p, mean, ratio_of_sums


def scores(cell: TaskScores, intervals: Intervals) -> Found:
    """Mean score on both sides and the mean paired difference."""
    if cell.kind == "binary":
        gained = int(((cell.variant == 1) & (cell.reference == 0)).sum())
        lost = int(((cell.variant == 0) & (cell.reference == 1)).sum())
        change, interval = (gained - lost) / len(cell.rows), _paired_shares(cell, intervals)
        trials = effective(cell, float(cell.variant.sum()))
        alone = _extend_interval(intervals.wilson(*trials), mean(cell.variant))
        what = f"{gained} items gained, {lost} lost{_mcnemar(cell, gained, lost)}; {cell.conditions}"
    else:
        change = mean(cell.variant - cell.reference)
        interval = intervals.mean(cell.variant - cell.reference, cell.clusters)
        alone = intervals.mean(cell.variant, cell.clusters)
        what = f"mean of the paired difference; {cell.conditions}"
    yield make_sampled(
        cell.main(),
        what,
        cell.count,
        reference=mean(cell.reference),
        variant=mean(cell.variant),
        change=change,
        interval=interval,
        variant_interval=alone,
    )


def _paired_shares(cell: TaskScores, intervals: Intervals) -> Interval | None:
    """Tango's interval of variant − reference. The share of items from the same document counts once."""
    return intervals.paired_share(cell.reference == 1, cell.variant == 1, cell.clusters)


def _mcnemar(cell: TaskScores, gained: int, lost: int) -> str:
    """The exact McNemar test of equally many gained and lost items, for information; empty if items share documents."""
    alone = cell.count.clusters == cell.count.observations
    return f" (exact McNemar p = {mcnemar_p(lost, gained):.3g})" if alone else ""


def effective(cell: TaskScores, successes: float) -> tuple[float, float]:
    """Successes and trials if items of the same document count once together."""
    share = cell.count.clusters / cell.count.observations
    return successes * share, float(cell.count.clusters)


def recovery(cell: TaskScores, intervals: Intervals) -> Found:
    """Σ variant / Σ reference. For 0/1 scores each end is the more extreme of the t interval and of Tango's interval
    divided by the reference's share, because a t interval is too narrow if few items differ."""
    metric, total = cell.derive_metric("recovery"), math.fsum(cell.reference.tolist())
    if not total > 0:
        reason = f"the reference scores {mean(cell.reference)}, so a ratio to it is undefined"
        yield Skipped(measure=metric.name, reason=reason, labels=cell.label())
        return
    interval = intervals.ratio_of_sums(cell.variant, cell.reference, cell.clusters, skewed=False)
    paired = _paired_shares(cell, intervals) if cell.kind == "binary" else None
    if interval is not None and paired is not None:
        share = mean(cell.reference)
        ends = (min(interval.low, 1 + paired.low / share), max(interval.high, 1 + paired.high / share))
        interval = Interval(*ends, f"the wider of {interval.method}, and {paired.method}")
    yield make_sampled(
        metric,
        f"sum of scores, variant / reference; {cell.conditions}",
        cell.count,
        change=ratio_of_sums(cell.variant, cell.reference),
        interval=_extend_interval(interval, ratio_of_sums(cell.variant, cell.reference)),
        labels=cell.label(),
    )


def flips(cell: TaskScores, intervals: Intervals) -> Found:
    """Share of items whose answer or score changes, in total and in each direction (1 is right unless less is
    better)."""
    answers = cell.rows["reference_answer"].to_numpy() != cell.rows["variant_answer"].to_numpy()
    right = 0.0 if cell.better == "lower" else 1.0
    was, becomes = cell.reference == right, cell.variant == right
    for name, flipped in (
        ("flips", answers | (was != becomes)),
        ("flips_to_wrong", was & ~becomes),
        ("flips_to_right", ~was & becomes),
    ):
        share = mean(flipped.astype(np.float64))
        yield make_sampled(
            cell.derive_metric(name),
            f"{int(flipped.sum())} of {len(flipped)} items; {cell.conditions}",
            cell.count,
            change=share,
            interval=_extend_interval(intervals.clopper_pearson(*effective(cell, float(flipped.sum()))), share),
            labels=cell.label(),
        )


def _extend_interval(interval: Interval | None, value: float) -> Interval | None:
    return interval and interval.around(value)
