"""An interval, the t quantile, and sums that do not depend on the order of what is summed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Both ends of a two-sided interval and, in the field's words, how they were found."""

    low: float
    high: float
    method: str

    def around(self, value: float) -> Interval:
        """The interval, extended to contain ``value`` itself despite rounding or repeated documents."""
        return Interval(min(self.low, value), max(self.high, value), self.method)


@dataclass(frozen=True)
class ClusterSums:
    """Sums of a numerator and a denominator within each cluster, in an order that depends on these numbers
    alone.
    """

    numerator: Floats
    denominator: Floats

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.numerator)


def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t."""
    return float(stdtrit(degrees, probability))


def z_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    return float(ndtri(probability))


def finite_array(values: ArrayLike, what: str) -> Floats:
    """``values`` as a one-dimensional float64 array. Raises ValueError for another shape, NaN or infinity."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what}: found an array of shape {array.shape}, expected one dimension")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: found NaN or infinity, expected finite numbers only")
    return array


def are_equal(array: Floats) -> bool:
    """Whether every number is exactly the same."""
    return bool((array == array[0]).all())


def mean(values: ArrayLike) -> float:
    """Mean of finite ``values``, correctly rounded sum, so that order does not matter; a constant gives
    itself.

    Raises ValueError when there is nothing to average.
    """
    array = finite_array(values, "mean")
    if len(array) == 0:
        raise ValueError("mean: found no value, expected at least one")
    return float(array[0]) if are_equal(array) else math.fsum(array.tolist()) / len(array)


def ratio_of_sums(numerator: ArrayLike, denominator: ArrayLike) -> float:
    """Σ numerator / Σ denominator with correctly rounded sums. Raises ValueError unless Σ denominator > 0."""
    top, bottom = finite_array(numerator, "numerator"), finite_array(denominator, "denominator")
    total = math.fsum(bottom.tolist())
    if not total > 0:
        raise ValueError(f"ratio of sums: the denominators sum to {total}, expected more than 0")
    if are_equal(top) and are_equal(bottom):
        return float(top[0] / bottom[0])
    return math.fsum(top.tolist()) / total


def cluster_sums(numerator: Floats, denominator: Floats, clusters: ArrayLike) -> ClusterSums:
    """Sums within clusters. Each sum is correctly rounded (``math.fsum``), hence independent of the order of
    rows.

    clusters: one label (number or string) for each row. Raises ValueError when lengths differ.
    """
    labels = np.asarray(clusters)
    if not len(numerator) == len(denominator) == len(labels):
        raise ValueError(f"found {len(numerator)} and {len(denominator)} values but {len(labels)} cluster labels")
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if (counts == 1).all():  # a sum of one value is that value; + 0.0 because it then is no negative zero either
        tops, bottoms = numerator + 0.0, denominator + 0.0
    else:
        order, ends = np.argsort(member, kind="stable"), counts.cumsum().tolist()
        tops, bottoms = _sum_parts(numerator[order], ends), _sum_parts(denominator[order], ends)
    canonical = np.lexsort((bottoms, tops))
    return ClusterSums(tops[canonical], bottoms[canonical])


def _sum_parts(values: Floats, ends: list[int]) -> Floats:
    """The correctly rounded sum of each run of values, given where each ends."""
    listed = values.tolist()
    return np.array([math.fsum(listed[start:end]) for start, end in zip([0, *ends], ends, strict=False)])


def lacks_spread(sums: ClusterSums, value: float) -> bool:
    """Whether every cluster has the ratio ``value``, but for rounding: copies of one cluster, not a sample of many."""
    expected = value * sums.denominator
    rounding = 4 * np.finfo(np.float64).eps * (np.abs(sums.numerator) + np.abs(expected))
    return bool((np.abs(sums.numerator - expected) <= rounding).all())
