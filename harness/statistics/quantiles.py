"""Intervals of quantiles of observations that belong together in clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.statistics.interval import (
    Floats,
    Interval,
    cluster_sums,
    finite_array,
    lacks_spread,
    ratio_of_sums,
    t_quantile,
)


def quantiles(values: ArrayLike, probabilities: Sequence[float]) -> tuple[float, ...]:
    """Quantiles by linear interpolation between order statistics. Raises ValueError for no value, NaN or
    infinity.
    """
    array = finite_array(values, "quantiles")
    if len(array) == 0:
        raise ValueError("quantiles: found no value, expected at least one")
    return tuple(float(value) for value in np.quantile(array, probabilities))


def quantile_intervals(
    values: ArrayLike, clusters: ArrayLike, probabilities: Sequence[float], confidence: float = 0.95
) -> tuple[Interval | None, ...]:
    """Interval of each quantile: the quantiles at p ∓ t_{D−1} · SE, where SE is that of the share of values
    up to it.

    Woodruff 1952, with the clustered SE of the share, or the binomial one where that is larger; both ends
    move outward to the next order statistic. Measured beside the percentile cluster bootstrap (256 values a
    cluster, p = 0.99) it covers about 95 % against 88 % of the time with 20 clusters, and as much as that
    with 64. None for fewer than two clusters, and where p ∓ t · SE leaves (0, 1): no order statistic bounds
    that quantile. Raises ValueError for NaN or infinity and for lengths that differ.
    """
    array = finite_array(values, "values")
    if len(array) == 0:
        return tuple(None for _ in probabilities)
    ordered = np.sort(array)
    return tuple(
        _woodruff(array, ordered, np.asarray(clusters), probability, confidence) for probability in probabilities
    )


def _woodruff(
    array: Floats, ordered: Floats, clusters: NDArray[Any], probability: float, confidence: float
) -> Interval | None:
    value = float(np.quantile(ordered, probability))
    below = (array <= value).astype(np.float64)
    sums = cluster_sums(below, np.ones_like(below), clusters)
    if sums.count < 2:
        return None
    share = ratio_of_sums(below, np.ones_like(below))
    residuals = sums.numerator - share * sums.denominator
    clustered = sums.count / (sums.count - 1) * math.fsum((residuals**2).tolist()) / len(array) ** 2
    # Copies of one cluster show no spread, and their observations say nothing about another cluster.
    size = sums.count if share < 1 and lacks_spread(sums, share) else len(array)
    error = math.sqrt(max(clustered, probability * (1 - probability) / size))
    half = t_quantile((1 + confidence) / 2, sums.count - 1) * error
    low, high = probability - half, probability + half
    if low <= 0 or high >= 1:
        return None
    return Interval(
        min(float(np.quantile(ordered, low, method="lower")), value),
        max(float(np.quantile(ordered, high, method="higher")), value),
        f"Woodruff, cluster t, {sums.count - 1} degrees of freedom",
    )
