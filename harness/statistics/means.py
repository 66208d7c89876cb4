"""Intervals of means and ratios of sums whose observations come in clusters (tokens in documents)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from harness.statistics.bootstrap import studentized_quantiles
from harness.statistics.interval import (
    ClusterSums,
    Floats,
    Interval,
    all_equal,
    cluster_sums,
    finite_array,
    ratio_of_sums,
    t_quantile,
)

FEW_CLUSTERS = 20
"""With fewer clusters the t interval is widened to the cluster bootstrap-t where that reaches farther."""


def mean_interval(values: ArrayLike, clusters: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Interval of the mean of all ``values`` when those with the same label in ``clusters`` belong together.

    None for fewer than two clusters: nothing is then known about how clusters differ. When all values are
    exactly equal, or the clusters show no spread, low = high = mean, and ``method`` says so: such an interval
    is no evidence about values that were not seen, and the judge does not take it for any. Raises ValueError
    for NaN or infinity and for lengths that differ.
    """
    array = finite_array(values, "values")
    return ratio_of_sums_interval(array, np.ones_like(array), clusters, confidence)


def ratio_of_sums_interval(
    numerator: ArrayLike, denominator: ArrayLike, clusters: ArrayLike, confidence: float = 0.95
) -> Interval | None:
    """Interval of δ = Σ_d S_d / Σ_d n_d, where S_d and n_d are the sums of cluster d.

    SE² = D/(D−1) · Σ_d (S_d − δ n_d)² / (Σ_d n_d)², δ ± t_{D−1} · SE (linearised ratio estimator; Cochran,
    Sampling Techniques, 6.4; Cameron & Miller 2015). With fewer than ``FEW_CLUSTERS`` clusters, each end is
    the farther of this one and that of the cluster bootstrap-t (Davison & Hinkley 1997, 2.4). None for fewer
    than two clusters. Raises ValueError for NaN, infinity, lengths that differ, or denominators that do not
    sum to more than 0.
    """
    top, bottom = finite_array(numerator, "numerator"), finite_array(denominator, "denominator")
    if len(top) == 0:
        return None
    sums = cluster_sums(top, bottom, clusters)
    if sums.count < 2:
        return None
    value = ratio_of_sums(top, bottom)
    if all_equal(top) and all_equal(bottom):
        return Interval(value, value, f"no interval: all {len(top)} values are exactly equal")
    residuals = sums.numerator - value * sums.denominator
    rounding = 4 * np.finfo(np.float64).eps * (np.abs(sums.numerator) + np.abs(value * sums.denominator))
    if (np.abs(residuals) <= rounding).all():
        return Interval(value, value, f"no interval: the {sums.count} clusters show no spread")
    return _studentized(value, residuals, sums, confidence)


def _studentized(value: float, residuals: Floats, sums: ClusterSums, confidence: float) -> Interval | None:
    count, total = sums.count, math.fsum(sums.denominator.tolist())
    error = math.sqrt(count / (count - 1) * math.fsum((residuals**2).tolist())) / total
    quantile = t_quantile((1 + confidence) / 2, count - 1)
    low, high, method = (
        value - quantile * error,
        value + quantile * error,
        f"cluster t, {count - 1} degrees of freedom",
    )
    if count < FEW_CLUSTERS:
        lower, upper = studentized_quantiles(sums, value, confidence)
        if math.isfinite(lower) and math.isfinite(upper):
            low, high = min(low, value - upper * error), max(high, value - lower * error)
            method += ", widened by cluster bootstrap-t"
    return Interval(low, high, method) if math.isfinite(low) and math.isfinite(high) else None
