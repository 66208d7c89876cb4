"""Helpers of measures: construct Measurement records, and report which side made a number non-finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import MeasureError
from harness.records import Measurement, Metric, Skipped
from harness.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

    from harness.records.result import Side

ROUNDING = 1e-5
"""Tolerance for rounding: how far a probability may exceed 1, or a divergence or log-likelihood (nats) may be below
0."""

UNSEEN_CHANGE = 0.5
"""Assumed largest change of an unseen document, in nats per token, if no token of the seen documents changed.

Declared, not measured: the perplexity of a whole document 1.65 times as high. Without this bound, a variant that
changes no number but is not byte-identical (permuted heads, powers of two that cancel) could never be decided.
"""
UNSEEN_SHARE = 0.25
"""The same bound for shares and probabilities: the assumed largest change of an unseen document's mean, if no token of
the seen documents changed. About the effect of half a nat per token on a Brier score."""
TOKEN_SIDES = ("document", "reference_nll", "variant_nll", "reference_top1_p", "variant_top1_p")
"""Columns that record on which side the logits of a token were not finite."""
ECE_REASON = (
    "an expected calibration error is above 0 by chance alone, the more so the fewer items there are, so its changes "
    "say little about calibration; judge calibration.squared_error, or a Brier score"
)
"""Why no rule may use a plain ECE: its bias was measured to be larger than the changes of interest."""


@dataclass(frozen=True)
class Count:
    """Number of observations, and number of clusters (documents) they come from."""

    observations: int
    clusters: int


def make_sampled(
    metric: Metric,
    what: str,
    count: Count,
    *,
    change: float | None = None,
    interval: Interval | None = None,
    reference: float | None = None,
    variant: float | None = None,
    variant_interval: Interval | None = None,
    labels: Mapping[str, str] | None = None,
) -> Measurement:
    """A metric estimated from a sample; ``what`` and the method of its interval become its method."""
    known = interval or variant_interval
    return Measurement(
        **_of(metric, labels),
        basis="sampled",
        reference=reference,
        variant=variant,
        change=change,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        variant_low=variant_interval.low if variant_interval else None,
        variant_high=variant_interval.high if variant_interval else None,
        n=count.observations,
        clusters=count.clusters,
        method="; ".join(filter(None, (what, known.method if known else ""))),
    )


def make_counted(
    metric: Metric,
    what: str,
    count: Count,
    *,
    change: float | None = None,
    reference: float | None = None,
    variant: float | None = None,
    labels: Mapping[str, str] | None = None,
) -> Measurement:
    """A metric counted over the complete population, so that its interval is the number itself."""
    return Measurement(
        **_of(metric, labels),
        basis="counted",
        reference=reference,
        variant=variant,
        change=change,
        low=change,
        high=change,
        variant_low=variant,
        variant_high=variant,
        n=count.observations,
        clusters=count.clusters,
        method=what,
    )


def not_finite(
    metric: Metric, side: Side, what: str, count: Count, labels: Mapping[str, str] | None = None
) -> Measurement:
    """A measurement without numbers, because ``side`` produced NaN or infinity."""
    return Measurement(
        **_of(metric, labels),
        basis="sampled",
        n=count.observations,
        clusters=count.clusters,
        method=what,
        non_finite=side,
    )


def _of(metric: Metric, labels: Mapping[str, str] | None) -> dict[str, Any]:
    """The fields that a measurement copies from its metric."""
    taken = ("name", "unit", "better", "neutral", "infinite_neutral")
    return {name: getattr(metric, name) for name in taken} | {"labels": dict(labels or {})}


def unusable_tokens(
    table: pd.DataFrame, columns: Sequence[str], metrics: Sequence[Metric]
) -> list[Measurement | Skipped]:
    """The results for all metrics if a tokens table is empty or contains non-finite numbers; else empty.

    A non-finite number in ``columns`` invalidates every metric: rows are neither dropped nor averaged. A column named
    ``reference_…`` blames the reference; all others, including those that compare both sides, blame the variant. Raises
    MeasureError for a missing column and for impossible values: negative log-likelihoods or divergences, probabilities
    outside [0, 1].
    """
    require(table, columns, "tokens")
    if table.empty:
        return [Skipped(measure=metric.name, reason="no token was scored") for metric in metrics]
    count = count_tokens(table)
    for side, names in _sides(columns).items():
        bad = ~np.isfinite(table[names].to_numpy(dtype=np.float64)).all(axis=1)
        if bad.any():
            what = f"{bad.sum()} of {len(table)} tokens are NaN or infinite on the {side}'s side"
            return [not_finite(metric, side, what, count) for metric in metrics]
    for name in columns:
        if name.endswith("_nll"):
            check_range(table, name, -ROUNDING, np.inf)
        elif name.endswith("_top1_p"):
            check_range(table, name, 0.0, 1 + ROUNDING)
    return []


def count_tokens(table: pd.DataFrame) -> Count:
    """Rows and documents of a tokens table."""
    return Count(len(table), int(table["document"].nunique()))


def require(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Raise MeasureError when the table lacks a column."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise MeasureError(f"the {name} table lacks the columns {', '.join(missing)}; it has {list(table.columns)}")


def check_range(table: pd.DataFrame, column: str, least: float, most: float) -> None:
    """Raise MeasureError when a finite column leaves the range of its definition."""
    values = table[column].to_numpy(dtype=np.float64)
    bad = (values < least) | (values > most)
    if bad.any():
        worst = values[bad][np.argmax(np.maximum(least - values[bad], values[bad] - most))]
        raise MeasureError(
            f"{column} is {worst} in {bad.sum()} of {len(values)} tokens or worse, expected {least} to {most}: "
            "it contradicts its definition, so the logits or their reduction are wrong"
        )


def _sides(columns: Sequence[str]) -> dict[Side, list[str]]:
    numbers = [c for c in columns if c not in ("document", "position", "target", "bytes")]
    reference = [c for c in numbers if c.startswith("reference_")]
    return {"reference": reference, "variant": [c for c in numbers if c not in reference]}
