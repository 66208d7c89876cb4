"""How a measure gets its intervals: in the ordinary way, or so that looking several times is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from harness.statistics.bounded import bounded_mean_interval, paired_share_interval, proportion_interval
from harness.statistics.calibration_shift import CalibrationShift, calibration_shift
from harness.statistics.interval import Interval
from harness.statistics.means import mean_interval, ratio_of_sums_interval
from harness.statistics.proportions import clopper_pearson, wilson_interval
from harness.statistics.quantiles import quantile_intervals


@dataclass(frozen=True)
class Intervals:
    """Intervals of a sample whose size was fixed before anything was seen.

    Its methods are the functions of this package of the same names. confidence: of each interval as it is computed.
    """

    confidence: float = 0.95

    def add_method(self, interval: Interval | None) -> Interval | None:
        """The interval with what must be added to its method."""
        return interval

    def among(self, count: int) -> Intervals:
        """Those of which ``count`` hold together (Bonferroni)."""
        return replace(self, confidence=1 - (1 - self.confidence) / count)

    def mean(
        self, values: ArrayLike, clusters: ArrayLike, skewed: bool = True, largest: float | None = None
    ) -> Interval | None:
        """See ``mean_interval``; skewed unless told otherwise, because damage often sits in few documents."""
        return self.add_method(mean_interval(values, clusters, self.confidence, skewed, largest))

    def ratio_of_sums(
        self, numerator: ArrayLike, denominator: ArrayLike, clusters: ArrayLike, skewed: bool = True
    ) -> Interval | None:
        """See ``ratio_of_sums_interval``; skewness is minded as in ``mean``."""
        return self.add_method(ratio_of_sums_interval(numerator, denominator, clusters, self.confidence, skewed))

    def share_of_clusters(self, successes: ArrayLike) -> Interval | None:
        """Exact interval of a share, one boolean for each cluster; None for fewer than two clusters."""
        array = np.asarray(successes, dtype=bool)
        found = clopper_pearson(int(array.sum()), len(array), self.confidence) if len(array) > 1 else None
        return self.add_method(found)

    def proportion(self, successes: ArrayLike, clusters: ArrayLike, largest: float = 1.0) -> Interval | None:
        """See ``proportion_interval``."""
        return self.add_method(proportion_interval(successes, clusters, self.confidence, largest))

    def paired_share(self, first: ArrayLike, second: ArrayLike, clusters: ArrayLike) -> Interval | None:
        """See ``paired_share_interval``."""
        return self.add_method(paired_share_interval(first, second, clusters, self.confidence))

    def wilson(self, successes: float, n: float) -> Interval | None:
        """See ``wilson_interval``."""
        return self.add_method(wilson_interval(successes, n, self.confidence))

    def clopper_pearson(self, successes: float, n: float) -> Interval | None:
        """See ``clopper_pearson``."""
        return self.add_method(clopper_pearson(successes, n, self.confidence))

    def bounded_mean(
        self, values: ArrayLike, clusters: ArrayLike, least: float, most: float, largest: float = math.inf
    ) -> Interval | None:
        """See ``bounded_mean_interval``."""
        return self.add_method(bounded_mean_interval(values, clusters, least, most, self.confidence, largest))

    def quantiles(
        self, values: ArrayLike, clusters: ArrayLike, probabilities: Sequence[float]
    ) -> tuple[Interval | None, ...]:
        """See ``quantile_intervals``."""
        quantiles = quantile_intervals(values, clusters, probabilities, self.confidence)
        return tuple(self.add_method(interval) for interval in quantiles)

    def calibration_shift(
        self,
        reference: tuple[ArrayLike, ArrayLike],
        variant: tuple[ArrayLike, ArrayLike],
        clusters: ArrayLike,
        bins: int = 15,
    ) -> CalibrationShift:
        """See ``calibration_shift``."""
        shift = calibration_shift(reference, variant, clusters, bins, self.confidence)
        return replace(shift, interval=self.add_method(shift.interval))
