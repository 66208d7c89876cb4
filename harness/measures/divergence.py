"""The measure ``divergence``: distance between the next-token distributions of reference and variant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.measures import Sampled
from harness.measures._shared import (
    ROUNDING,
    TOKEN_SIDES,
    UNSEEN_CHANGE,
    UNSEEN_SHARE,
    check_range,
    count_tokens,
    make_sampled,
    unusable_tokens,
)
from harness.records import Measurement, Metric, Skipped
from harness.statistics import Interval, Intervals, mean, quantiles

if TYPE_CHECKING:
    import pandas as pd

KL = "KL(reference‖variant) of the next-token distributions"
METRICS = (
    Metric(
        name="divergence.kl_mean",
        title="mean KL divergence",
        unit="nats/token",
        better="lower",
        description=f"mean {KL}",
        spread="relative",
        spread_size=1.5,
        chance="ln_v",
        summary="quality",
    ),
    Metric(
        name="divergence.kl_p50",
        title="median KL divergence",
        unit="nats/token",
        better="lower",
        description=f"median {KL}",
        spread="relative",
        spread_size=1.5,
        chance="ln_v",
    ),
    Metric(
        name="divergence.kl_p99",
        title="99th percentile of KL",
        unit="nats/token",
        better="lower",
        description=f"99th percentile of {KL}",
        spread="relative",
        spread_size=2.5,
        chance="ln_v",
    ),
    Metric(
        name="divergence.kl_p999",
        title="99.9th percentile of KL",
        unit="nats/token",
        better="lower",
        description=f"99.9th percentile of {KL}",
        spread="relative",
        spread_size=5.0,
        chance="ln_v",
    ),
    Metric(
        name="divergence.kl_max",
        title="largest KL divergence",
        unit="nats/token",
        better="lower",
        description=f"largest {KL}",
        spread="none",
        chance="ln_v",
    ),
    Metric(
        name="divergence.reverse_kl_mean",
        title="mean reverse KL divergence",
        unit="nats/token",
        better="lower",
        description="mean KL(variant‖reference)",
        spread="relative",
        spread_size=1.5,
    ),
    Metric(
        name="divergence.top1_agreement",
        title="same most likely token",
        unit="share",
        better="higher",
        neutral=1.0,
        description="share of tokens where both sides predict the same most likely token",
        spread="relative",
        spread_size=1.5,
        chance="one_in_v",
        summary="quality",
    ),
    Metric(
        name="divergence.delta_p_mean",
        title="mean change of p(target)",
        unit="probability",
        better="higher",
        description="mean p_variant(target) − p_reference(target)",
        spread="mean",
        spread_size=0.01,
    ),
    Metric(
        name="divergence.delta_p_rms",
        title="RMS change of p(target)",
        unit="probability",
        better="lower",
        description="root mean square of p_variant(target) − p_reference(target)",
        spread="relative",
        spread_size=1.5,
    ),
    Metric(
        name="divergence.total_variation",
        title="total variation",
        unit="probability",
        better="lower",
        description="mean ½ Σ |p_reference − p_variant|",
        spread="relative",
        spread_size=1.5,
    ),
)
PERCENTILES = {"divergence.kl_p50": 0.5, "divergence.kl_p99": 0.99, "divergence.kl_p999": 0.999}


class Divergence(Sampled):
    """Distance between the predicted distributions: KL divergence and its tail, top-1 agreement, Δp."""

    table: ClassVar[str] = "tokens"
    metrics: ClassVar[tuple[Metric, ...]] = METRICS
    by_document: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...] | None] = (
        *TOKEN_SIDES,
        "reference_top1",
        "variant_top1",
        "kl",
        "reverse_kl",
        "total_variation",
    )

    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """Compute all metrics. Raises MeasureError for a KL below −1e-5 or a total variation outside [0, 1]."""
        if broken := unusable_tokens(table, self.columns or (), METRICS):
            return broken
        check_range(table, "kl", -ROUNDING, np.inf)
        check_range(table, "reverse_kl", -ROUNDING, np.inf)
        check_range(table, "total_variation", -ROUNDING, 1 + ROUNDING)
        documents = table["document"].to_numpy()
        results = _kl(table, documents, intervals)
        results |= _agreement(table, documents, intervals) | _probabilities(table, documents, intervals)
        count = count_tokens(table)
        return [
            make_sampled(metric, what, count, change=change, interval=interval)
            for metric in METRICS
            for what, change, interval in [results[metric.name]]
        ]


_Found = dict[str, tuple[str, float, Interval | None]]


def _kl(table: pd.DataFrame, documents: NDArray[Any], intervals: Intervals) -> _Found:
    kl = table["kl"].to_numpy(dtype=np.float64)
    reverse = table["reverse_kl"].to_numpy(dtype=np.float64)
    probabilities = tuple(PERCENTILES.values())
    tails = zip(
        PERCENTILES,
        quantiles(kl, probabilities),
        intervals.quantiles(kl, documents, probabilities),
        strict=True,
    )
    found: _Found = {name: ("quantile over tokens", value, interval) for name, value, interval in tails}
    found["divergence.kl_mean"] = _mean_not_negative(kl, documents, intervals)
    found["divergence.kl_max"] = ("maximum over tokens; a maximum has no interval", float(kl.max()), None)
    found["divergence.reverse_kl_mean"] = _mean_not_negative(reverse, documents, intervals)
    return found


def _agreement(table: pd.DataFrame, documents: NDArray[Any], intervals: Intervals) -> _Found:
    same = (table["reference_top1"] == table["variant_top1"]).to_numpy()
    interval = intervals.proportion(same, documents, UNSEEN_SHARE)
    return {"divergence.top1_agreement": ("share of tokens", mean(same), interval)}


def _probabilities(table: pd.DataFrame, documents: NDArray[Any], intervals: Intervals) -> _Found:
    reference = np.exp(-table["reference_nll"].to_numpy(dtype=np.float64)).clip(max=1.0)
    delta = np.exp(-table["variant_nll"].to_numpy(dtype=np.float64)).clip(max=1.0) - reference
    variation = table["total_variation"].to_numpy(dtype=np.float64).clip(0.0, 1.0)
    square = intervals.bounded_mean(delta**2, documents, 0.0, 1.0, UNSEEN_SHARE)
    root = square and Interval(math.sqrt(square.low), math.sqrt(square.high), f"root of: {square.method}")
    return {
        "divergence.delta_p_mean": (
            "mean over tokens",
            mean(delta),
            intervals.bounded_mean(delta, documents, -1.0, 1.0, UNSEEN_SHARE),
        ),
        "divergence.delta_p_rms": ("root mean square over tokens", math.sqrt(mean(delta**2)), root),
        "divergence.total_variation": (
            "mean over tokens",
            mean(variation),
            intervals.bounded_mean(variation, documents, 0.0, 1.0, UNSEEN_SHARE),
        ),
    }


def _mean_not_negative(
    values: NDArray[np.float64], documents: NDArray[Any], intervals: Intervals
) -> tuple[str, float, Interval | None]:
    """Clip the lower end at 0, the minimum of a divergence, unless rounding made the mean itself negative."""
    value, found = mean(values), intervals.mean(values, documents, largest=UNSEEN_CHANGE)
    interval = found and Interval(max(found.low, min(0.0, value)), found.high, found.method)
    return "mean over tokens", value, interval
