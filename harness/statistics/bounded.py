"""Intervals for clustered observations that cannot leave a range, such as agreement of two predictions (0 or
1).

Where all observations are the same, a t interval has no width; these keep one, because the range limits what
the unseen observations can be.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from harness.statistics.interval import (
    Interval,
    are_equal,
    cluster_sums,
    finite_array,
    lacks_spread,
    mean,
    t_quantile,
)
from harness.statistics.means import mean_interval
from harness.statistics.proportions import clopper_pearson, tango_interval


def proportion_interval(
    successes: ArrayLike, clusters: ArrayLike, confidence: float = 0.95, largest: float = 1.0
) -> Interval | None:
    """Interval of the share of successes (booleans) when those with the same label in ``clusters`` belong
    together.

    Clopper-Pearson at the effective sample size p(1 − p)/SE², at most n, reduced by (t_{n−1}/t_{D−1})² for
    the degrees of freedom that the SE really has (Korn & Graubard 1998). Where all are the same, as in
    ``bounded_mean_interval``. None for fewer than two clusters.
    Raises ValueError for values other than 0 and 1 and for lengths that differ.
    """
    array = finite_array(successes, "successes")
    if not np.isin(array, (0.0, 1.0)).all():
        raise ValueError("successes: found a value other than 0 and 1")
    if len(array) and are_equal(array):
        return _interval_of_equals(array, clusters, 0.0, 1.0, largest, confidence)
    size = _effective_size(array, clusters, confidence)
    if size is None:
        return None
    share = mean(array)
    interval = clopper_pearson(share * size, size, confidence)
    if interval is None:
        return None
    low, high = min(interval.low, share), max(interval.high, share)
    return Interval(low, high, f"Korn-Graubard (Clopper-Pearson at the effective sample size {size:.1f})")


def paired_share_interval(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike, confidence: float = 0.95
) -> Interval | None:
    """Interval of the difference second − first of two paired shares (booleans of the same shape); see Tango.

    Of pairs with the same label in ``clusters`` only the first counts: the others are no independent evidence. The
    interval is widened to contain the difference over all pairs. None without pairs.
    """
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if not len(one):
        return None
    alone = np.unique(np.asarray(clusters), return_index=True)[1]
    gained, lost = int((two & ~one)[alone].sum()), int((one & ~two)[alone].sum())
    interval = tango_interval(gained, lost, len(alone), confidence)
    return interval and interval.around(mean(two.astype(np.float64) - one.astype(np.float64)))


def bounded_mean_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    least: float,
    most: float,
    confidence: float = 0.95,
    largest: float = math.inf,
) -> Interval | None:
    """Interval of the mean of values that lie in [least, most], ends kept in that range.

    ``mean_interval``, except where all values are exactly equal: then the Clopper-Pearson bound on the share of
    clusters that are otherwise (of those seen none was), times how far the mean of one can be away: to the end of the
    range, and no farther than is declared as ``largest``. A thousand equal tokens of twenty documents say no more than
    twenty about a document that was not seen. None for fewer than two clusters. Raises ValueError for values out of
    range, NaN, infinity, and lengths that differ.
    """
    array = finite_array(values, "values")
    if not ((least <= array) & (array <= most)).all():
        raise ValueError(f"values: found {array.min()} to {array.max()}, expected {least} to {most}")
    if len(array) and are_equal(array):
        return _interval_of_equals(array, clusters, least, most, largest, confidence)
    interval = mean_interval(array, clusters, confidence)
    return interval and Interval(max(interval.low, least), min(interval.high, most), interval.method)


def _interval_of_equals(
    array: np.ndarray, clusters: ArrayLike, least: float, most: float, largest: float, confidence: float
) -> Interval | None:
    value, count = float(array[0]), cluster_sums(array, np.ones_like(array), clusters).count
    other = clopper_pearson(0, count, confidence)
    if count < 2 or other is None:
        return None
    low = value - other.high * min(largest, value - least)
    high = value + other.high * min(largest, most - value)
    far = f"each by at most {largest:g}, as declared" if largest < most - least else "each as far as the range goes"
    method = f"Clopper-Pearson bound on the share of documents that differ (none of {count} did), {far}"
    return Interval(low, high, method)


def _effective_size(array: np.ndarray, clusters: ArrayLike, confidence: float) -> float | None:
    """Number of independent values, not all equal, that carry as much as these; None for fewer than two clusters."""
    if len(array) == 0:
        return None
    sums = cluster_sums(array, np.ones_like(array), clusters)
    if sums.count < 2:
        return None
    center, n = mean(array), len(array)
    residuals = sums.numerator - center * sums.denominator
    variance = sums.count / (sums.count - 1) * math.fsum((residuals**2).tolist()) / n**2
    size = min(n, center * (1 - center) / variance) if variance > 0 else n
    if lacks_spread(sums, center):
        size = sums.count  # copies of one cluster: more of its observations say nothing about another
    tail = (1 + confidence) / 2
    return float(size * (t_quantile(tail, n - 1) / t_quantile(tail, sums.count - 1)) ** 2)
