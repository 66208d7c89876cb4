"""Intervals that do not mind skewness, so that what measures make of them can be compared with other packages."""

from __future__ import annotations

from numpy.typing import ArrayLike

from harness.statistics import Interval, Intervals


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


def is_barely_wider(found: tuple[float, float], symmetric: tuple[float, float], by: float = 0.12) -> bool:
    """Whether an interval that minds skewness holds the symmetric one and is wider by at most this share."""
    inside = found[0] <= symmetric[0] < symmetric[1] <= found[1]
    return inside and found[1] - found[0] < (1 + by) * (symmetric[1] - symmetric[0])
