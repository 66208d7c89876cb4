"""Metrics from log-likelihoods of paired task items: ECE and Brier score of choices, bits per byte, perplexities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from harness.measures._items import Floats, Found, TaskScores
from harness.measures._shared import ECE_REASON, make_sampled, not_finite
from harness.statistics import (
    Interval,
    Intervals,
    brier_scores,
    calibration_error,
    mean,
    ratio_of_sums,
)

ECE_BINS = 15


def confidence(cell: TaskScores, intervals: Intervals) -> Found:
    """ECE and Brier score of the choice; the confidence is the largest softmax of the plain log-likelihoods.

    The ECE has no interval and is not judged: it is biased, and intervals of its change miss the truth more often
    than not.
    """
    sure = {side: _largest_softmax(cell.rows[f"{side}_loglikelihoods"]) for side in ("reference", "variant")}
    right = {"reference": cell.reference, "variant": cell.variant}
    ece = {side: calibration_error(sure[side], right[side], ECE_BINS) for side in sure}
    softmax = "softmax over the plain log-likelihoods of the choices, not normalised by length"
    shown = make_sampled(
        cell.derive_metric("ece"),
        f"{softmax}; {ECE_BINS} bins of equal width; no interval, as ECE is biased",
        cell.count,
        reference=ece["reference"],
        variant=ece["variant"],
        change=ece["variant"] - ece["reference"],
        labels=cell.label(),
    )
    yield shown.model_copy(update={"not_judged": ECE_REASON})
    brier = {side: brier_scores(sure[side], right[side]) for side in sure}
    shift = brier["variant"] - brier["reference"]
    yield make_sampled(
        cell.derive_metric("brier"),
        f"{softmax}; mean of the paired difference",
        cell.count,
        reference=mean(brier["reference"]),
        variant=mean(brier["variant"]),
        change=mean(shift),
        interval=intervals.bounded_mean(shift, cell.clusters, -1.0, 1.0),
        variant_interval=intervals.bounded_mean(brier["variant"], cell.clusters, 0.0, 1.0),
        labels=cell.label(),
    )


def _largest_softmax(loglikelihoods: Iterable[Sequence[float]]) -> Floats:
    """Confidence in the most likely choice of each item: 1 / Σ exp(ll − largest ll)."""
    found = []
    for lls in loglikelihoods:
        logits = np.asarray(lls, dtype=np.float64)
        found.append(1.0 / math.fsum(np.exp(logits - logits.max()).tolist()))
    return np.array(found)


def bits_per_byte(cell: TaskScores, intervals: Intervals) -> Found:
    """Σ −log₂ p / Σ bytes over documents, and its paired difference."""
    weight = cell.rows["weight"].to_numpy(dtype=np.float64)
    reference, variant = (nll / math.log(2) for nll in _nlls(cell))
    yield make_sampled(
        cell.main(),
        f"ratio of sums over documents; {cell.conditions}",
        cell.count,
        reference=ratio_of_sums(reference, weight),
        variant=ratio_of_sums(variant, weight),
        change=ratio_of_sums(variant - reference, weight),
        interval=intervals.ratio_of_sums(variant - reference, weight, cell.clusters),
        variant_interval=intervals.ratio_of_sums(variant, weight, cell.clusters),
    )


def perplexity(cell: TaskScores, intervals: Intervals) -> Found:
    """exp(Σ −ln p / Σ words or bytes) on both sides, and the paired ratio, on which rules should be based."""
    weight = cell.rows["weight"].to_numpy(dtype=np.float64)
    reference, variant = _nlls(cell)
    on_reference, on_variant = (_exp(ratio_of_sums(nll, weight)) for nll in (reference, variant))
    ratio = _exp(ratio_of_sums(variant - reference, weight))
    if math.inf in (on_reference, on_variant, ratio):
        side: Literal["reference", "variant"] = "reference" if on_reference == math.inf else "variant"
        for metric in (cell.main(), cell.ratio()):
            yield not_finite(metric, side, f"the perplexity of the {side} is too large for a number", cell.count)
        return
    yield make_sampled(
        cell.main(),
        f"exp of the ratio of sums over documents; {cell.conditions}",
        cell.count,
        reference=on_reference,
        variant=on_variant,
        change=on_variant - on_reference,
        variant_interval=_exp_interval(intervals.ratio_of_sums(variant, weight, cell.clusters)),
    )
    yield make_sampled(
        cell.ratio(),
        f"exp of the ratio of sums over documents of the paired difference; {cell.conditions}",
        cell.count,
        change=ratio,
        interval=_exp_interval(intervals.ratio_of_sums(variant - reference, weight, cell.clusters)),
    )


def _nlls(cell: TaskScores) -> tuple[Floats, Floats]:
    """Negative log-likelihood (nats) of each document on the reference's and on the variant's side."""
    sides = (cell.rows[f"{side}_loglikelihoods"] for side in ("reference", "variant"))
    reference, variant = (np.array([-float(lls[0]) for lls in side]) for side in sides)
    return reference, variant


def _exp(value: float) -> float:
    return math.exp(value) if value < math.log(np.finfo(np.float64).max) else math.inf


def _exp_interval(interval: Interval | None) -> Interval | None:
    """Ends of an interval, exponentiated; None when the upper end is too large to be a number."""
    if interval is None or _exp(interval.high) == math.inf:
        return None
    return Interval(_exp(interval.low), _exp(interval.high), f"exp of: {interval.method}")
