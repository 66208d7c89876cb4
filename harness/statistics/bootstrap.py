"""The cluster bootstrap-t: clusters are drawn with replacement, whole, from a fixed seed."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.statistics.interval import ClusterSums

SEED = 20_231
DRAWS = 1_999


def studentized_quantiles(sums: ClusterSums, value: float, confidence: float) -> tuple[float, float]:
    """Lower and upper quantile of (δ* − δ)/SE* over draws of clusters; infinite when too many draws have no
    spread.

    ``sums`` come in an order that depends on their content alone, so neither the order of rows nor the names
    of the clusters change what is drawn.
    """
    drawn, is_one_cluster = _draw(sums.count)
    top, bottom = np.take(sums.numerator, drawn), np.take(sums.denominator, drawn)
    total = bottom.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        center = top.sum(axis=1) / total
        bottom *= center[:, None]
        top -= bottom
        squares = np.square(top, out=top)
        error = np.sqrt(sums.count / (sums.count - 1) * squares.sum(axis=1)) / total
        # A draw of one cluster repeated has no spread: its t is infinite, not some ratio of rounding errors.
        error[is_one_cluster] = 0.0
        studentized = (center - value) / error
    studentized[np.isnan(studentized)] = 0.0
    ordered = np.sort(studentized)
    rank = max(math.floor((1 - confidence) / 2 * (DRAWS + 1)), 1)
    return float(ordered[rank - 1]), float(ordered[-rank])


@lru_cache(maxsize=8)
def _draw(count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The clusters of every draw, and whether a draw has one cluster alone."""
    drawn = np.random.default_rng(SEED).integers(count, size=(DRAWS, count))
    return drawn, (drawn == drawn[:, :1]).all(axis=1)
