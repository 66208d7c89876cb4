"""Intervals that do not mind skewness, so that what measures make of them can be compared with other packages; and what
minding it adds, written down independently."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq

from harness.statistics import Interval, Intervals
from harness.statistics.means import FEW_SKEWED


class SymmetricIntervals(Intervals):
    """The plain cluster t intervals of means and of ratios of sums."""

    def mean(
        self, values: ArrayLike, clusters: ArrayLike, skewed: bool = False, largest: float | None = None
    ) -> Interval | None:
        return super().mean(values, clusters, False, largest)

    def ratio_of_sums(
        self, numerator: ArrayLike, denominator: ArrayLike, clusters: ArrayLike, skewed: bool = False
    ) -> Interval | None:
        return super().ratio_of_sums(numerator, denominator, clusters, False)


def skewed_ends(value: float, error: float, residuals: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Ends of an estimate that minds skewness, for at least ``FEW_SKEWED`` clusters (fewer get the bootstrap-t, too).

    error: the standard error of the symmetric interval. residuals: one for each cluster, with the mean 0. Hall's
    transformation is inverted by bisection here, and by its formula in the package.
    """
    assert len(residuals) >= FEW_SKEWED
    degrees = len(residuals) - 1
    quantile = float(stats.t.ppf((1 + confidence) / 2, degrees))
    lean = float(stats.skew(residuals)) / math.sqrt(len(residuals))

    def studentized(transformed: float) -> float:
        return float(brentq(lambda t: t + lean * t**2 / 3 + lean**2 * t**3 / 27 + lean / 6 - transformed, -99, 99))

    wider = error * math.sqrt(len(residuals) / (degrees - 1))
    low = value - wider * max(quantile, studentized(quantile))
    return low, value - wider * min(-quantile, studentized(-quantile))
