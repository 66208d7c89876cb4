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
    are_equal,
    cluster_sums,
    finite_array,
    lacks_spread,
    ratio_of_sums,
    t_quantile,
)
from harness.statistics.proportions import clopper_pearson

FEW_CLUSTERS = 20
"""With fewer clusters the t interval is widened to the cluster bootstrap-t where that reaches farther."""
FEW_SKEWED = 100
"""The same for clusters that may be skewed, such as divergences."""


def mean_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    confidence: float = 0.95,
    skewed: bool = False,
    largest: float | None = None,
) -> Interval | None:
    """Interval of the mean of all ``values`` when those with the same label in ``clusters`` belong together.

    skewed: whether a few values may be far larger than the others, as divergences and losses are. The t interval then
    falls short on the long side: where the loss of documents is log-normal (σ 1.2), the truth lay above it in 12 % of
    draws of 50 documents and in 7.5 % of 200, instead of 2.5 %; with this it did in 6 and 4.5 %. Each end becomes the
    farthest of the t interval, that by Hall's transformation (Hall 1992) and, with fewer than ``FEW_SKEWED`` clusters,
    that of the bootstrap-t. Where documents are alike, intervals get 4 % wider with 50 documents, 1 % with 200.

    largest: how far from 0 the mean of a cluster that was not seen is declared to be at most. Where every value is
    exactly 0, the interval then is the Clopper-Pearson bound on the share of clusters in which something is not (of
    those seen there was none) times ``largest``.

    None for fewer than two clusters: nothing is then known about how clusters differ. When the clusters show no
    spread, or all values are exactly equal and nothing is declared, low = high = mean, and ``method`` says so: such
    an interval is no evidence about values that were not seen, and the judge does not take it for any. Raises
    ValueError for NaN or infinity and for lengths that differ.
    """
    array = finite_array(values, "values")
    if largest is not None and len(array) and not array.any():
        return _interval_of_zeros(len(np.unique(np.asarray(clusters))), largest, confidence)
    return _interval(array, np.ones_like(array), clusters, confidence, skewed)


def ratio_of_sums_interval(
    numerator: ArrayLike, denominator: ArrayLike, clusters: ArrayLike, confidence: float = 0.95, skewed: bool = False
) -> Interval | None:
    """Interval of δ = Σ_d S_d / Σ_d n_d, where S_d and n_d are the sums of cluster d.

    SE² = D/(D−1) · Σ_d (S_d − δ n_d)² / (Σ_d n_d)², δ ± t_{D−1} · SE (linearised ratio estimator; Cochran,
    Sampling Techniques, 6.4; Cameron & Miller 2015). With fewer than ``FEW_CLUSTERS`` clusters, each end is
    the farther of this one and that of the cluster bootstrap-t (Davison & Hinkley 1997, 2.4). skewed: as in
    ``mean_interval``. None for fewer than two clusters. Raises ValueError for NaN, infinity, lengths that differ, or
    denominators that do not sum to more than 0.
    """
    top, bottom = finite_array(numerator, "numerator"), finite_array(denominator, "denominator")
    return _interval(top, bottom, clusters, confidence, skewed)


def _interval(top: Floats, bottom: Floats, clusters: ArrayLike, confidence: float, skewed: bool) -> Interval | None:
    if len(top) == 0:
        return None
    sums = cluster_sums(top, bottom, clusters)
    if sums.count < 2:
        return None
    value = ratio_of_sums(top, bottom)
    if are_equal(top) and are_equal(bottom):
        return Interval(value, value, f"no interval: all {len(top)} values are exactly equal")
    if lacks_spread(sums, value):
        return Interval(value, value, f"no interval: the {sums.count} clusters show no spread")
    return _studentized_interval(value, sums.numerator - value * sums.denominator, sums, confidence, skewed)


def _interval_of_zeros(clusters: int, largest: float, confidence: float) -> Interval | None:
    bound = clopper_pearson(0, clusters, confidence)
    if clusters < 2 or bound is None:
        return None
    reach = bound.high * largest
    method = (
        f"Clopper-Pearson bound on the share of documents that change (none of {clusters} did), each by at most "
        f"{largest:g}, as declared"
    )
    return Interval(-reach, reach, method)


def _studentized_interval(
    value: float, residuals: Floats, sums: ClusterSums, confidence: float, skewed: bool
) -> Interval | None:
    count, total = sums.count, math.fsum(sums.denominator.tolist())
    error = math.sqrt(count / (count - 1) * math.fsum((residuals**2).tolist())) / total
    quantile = t_quantile((1 + confidence) / 2, count - 1)
    # Quantiles of (δ̂ − δ)/SE: the symmetric ones of t, and others that mind skewness.
    laws, wider = [(-quantile, quantile)], []
    if skewed:
        laws.append((_invert_skew(-quantile, residuals), _invert_skew(quantile, residuals)))
        wider.append("Hall's transformation")
        # The skewness is estimated too. Counting it as a parameter is what brings 10 documents from 5.5 to 4 % beyond.
        error *= math.sqrt(count / max(count - 2, 1))
    if count < (FEW_SKEWED if skewed else FEW_CLUSTERS):
        law = studentized_quantiles(sums, value, confidence)
        if math.isfinite(law[0]) and math.isfinite(law[1]):
            laws.append(law)
            wider.append("cluster bootstrap-t")
    low = value - max(upper for _, upper in laws) * error
    high = value - min(lower for lower, _ in laws) * error
    method = f"cluster t, {count - 1} degrees of freedom" + (f", widened by {' and '.join(wider)}" if wider else "")
    return Interval(low, high, method) if math.isfinite(low) and math.isfinite(high) else None


def _invert_skew(quantile: float, residuals: Floats) -> float:
    """The t = (δ̂ − δ)/SE at which Hall's transformation, whose law is nearly symmetric, takes the value ``quantile``.

    t + a t²/3 + a² t³/27 + a/6 with a = skewness / √D; monotone in t (Hall 1992, On the removal of skewness by
    transformation).
    """
    second = math.fsum((residuals**2).tolist()) / len(residuals)
    third = math.fsum((residuals**3).tolist()) / len(residuals)
    lean = third / second**1.5 / math.sqrt(len(residuals))
    if abs(lean) < 1e-6:
        return quantile
    return float(3 / lean * (np.cbrt(1 + lean * (quantile - lean / 6)) - 1))
