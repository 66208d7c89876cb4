"""Confidence sequences of bounded means by betting: valid whenever one looks, and for any law of the documents.

Somebody who bets on "the mean is below m" at fair odds multiplies a stake by 1 − λ (x − m) with every observation. If
the mean is m or more, the stake is expected not to grow, and ever grows to 1/α with a probability of at most α (Ville
1939). So the m at which the stake has grown to 1/α are excluded, at any time and as often as one looks (Waudby-Smith &
Ramdas 2023, Estimating means of bounded random variables by betting).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from harness.statistics.group_sequential import GroupSequential
from harness.statistics.interval import ClusterSums, Floats, Interval, cluster_sums, finite_array, ratio_of_sums

STAKES = tuple(0.98 * 2.0**-halvings for halvings in range(7))
"""Shares of the largest bet that can never lose more than everything; the gambler puts as much on each of them.

One of them is within a factor √2 of the best for the gap and the variance at hand, which nobody knows beforehand; the
price is that at worst the stake must grow to seven times as much.
"""


def betting_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    least: float,
    most: float,
    largest: int | None = None,
    confidence: float = 0.95,
) -> Interval | None:
    """Interval of the mean of all ``values`` in [least, most] that holds at every number of clusters at once.

    Clusters are drawn at random and may be of any size up to ``largest`` values (None: that of those seen, which is
    right if all are of equal size). For the mean θ = E[S]/E[n] of clusters with sums S of n values, S − θ n has the
    mean 0, so that x − m above becomes (S − m n)/largest; small clusters are small bets. Nothing depends on the order
    of clusters, and the stake only grows as m moves away from the mean, so that each end is the one root there is.

    None where there is no value. Raises ValueError for values out of range, clusters beyond ``largest``, NaN,
    infinity, and lengths that differ.
    """
    array = finite_array(values, "values")
    if not ((least <= array) & (array <= most)).all():
        raise ValueError(f"values: found {array.min()} to {array.max()}, expected {least} to {most}")
    if len(array) == 0:
        return None
    sums = cluster_sums(array, np.ones_like(array), clusters)
    biggest = float(sums.denominator.max())
    if largest is not None and biggest > largest:
        raise ValueError(f"betting: found a cluster of {biggest:g} values, expected at most {largest}")
    size = float(largest or biggest)
    value, error = ratio_of_sums(array, np.ones_like(array)), (1 - confidence) / 2
    high = _upper_end(sums, size, value, most, error)
    mirrored = ClusterSums((least + most) * sums.denominator - sums.numerator, sums.denominator)
    low = least + most - _upper_end(mirrored, size, least + most - value, most, error)
    ends = min(max(low, least), value), max(high, value)
    return Interval(*ends, f"betting on {sums.count} clusters of at most {size:g} values")


def log_stake(sums: ClusterSums, size: float, mean: float, most: float) -> float:
    """ln of what the gambler has who bets that the mean is below ``mean``, having begun with 1.

    The stake is the average over STAKES of Π_d (1 − λ (S_d − mean · n_d)/size) with λ = stake/(most − mean).
    """
    moves: Floats = (sums.numerator - mean * sums.denominator) / (size * (most - mean))
    logs = np.log1p(-np.multiply.outer(np.array(STAKES), moves)).sum(axis=1)
    return float(logsumexp(logs)) - math.log(len(STAKES))


def _upper_end(sums: ClusterSums, size: float, value: float, most: float, error: float) -> float:
    """The smallest mean that is excluded as too large; ``most`` where none is."""
    from scipy.optimize import brentq

    # Nearer to the end of the range the bets cannot be computed: nothing there is excluded, which is the careful side.
    wanted, last = -math.log(error), most - 1e-9 * (most - value)
    if not value < last < most or log_stake(sums, size, last, most) <= wanted:
        return most
    fine = 1e-13 * (most - value)
    root = brentq(lambda mean: log_stake(sums, size, mean, most) - wanted, value, last, xtol=fine, rtol=1e-14)
    return min(float(root) + 2 * fine, most)


@dataclass(frozen=True)
class Betting(GroupSequential):
    """Betting for what is bounded by its definition (shares, probabilities, Brier scores); for the rest the bounds of
    planned looks, because a mean of numbers without a bound can be anything that was not seen yet.
    """

    largest: int | None = None

    def proportion(self, successes: ArrayLike, clusters: ArrayLike, largest: float = 1.0) -> Interval | None:
        """A share, as a mean of values in [0, 1]; what is declared of unseen documents is not needed."""
        return self.bounded_mean(successes, clusters, 0.0, 1.0)

    def paired_share(self, first: ArrayLike, second: ArrayLike, clusters: ArrayLike) -> Interval | None:
        """The difference of two paired shares, as a mean of values in [−1, 1]; every pair of a cluster counts."""
        changes = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
        return self.bounded_mean(changes, clusters, -1.0, 1.0)

    def bounded_mean(
        self, values: ArrayLike, clusters: ArrayLike, least: float, most: float, largest: float = math.inf
    ) -> Interval | None:
        """See ``betting_interval``; None for fewer than two clusters. What is declared is not needed."""
        if len(np.unique(np.asarray(clusters))) < 2:
            return None
        interval = betting_interval(values, clusters, least, most, self.largest, self.together)
        return interval and Interval(interval.low, interval.high, f"{interval.method}, valid at any look; {self.look}")
