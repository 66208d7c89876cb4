"""How much a calibration error changes, without the bias that noise in every bin adds to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.statistics.calibration import check_outcomes
from harness.statistics.interval import Floats, Interval, t_quantile


@dataclass(frozen=True)
class CalibrationShift:
    """Squared calibration errors of both sides and their difference with its interval (in probability²)."""

    reference: float
    variant: float
    change: float
    interval: Interval | None


@dataclass(frozen=True)
class _BinSums:
    """Σ (confidence − correct) and the number of observations, both by cluster and bin."""

    gaps: Floats
    sizes: Floats


def calibration_shift(
    reference: tuple[ArrayLike, ArrayLike],
    variant: tuple[ArrayLike, ArrayLike],
    clusters: ArrayLike,
    bins: int = 15,
    confidence: float = 0.95,
) -> CalibrationShift:
    """Squared calibration errors Σ_b (n_b/N) · (mean confidence_b − accuracy_b)² of both sides and their change.

    reference, variant: confidences in [0, 1] and outcomes (0 or 1) of the same N observations; clusters: one label
    for each. Bins of equal mass are cut once, through the confidences of both sides together.

    The plain square is too large by the variance of each bin's gap. Here a bin's squared sum counts products of
    *different* clusters only, Σ_{c≠d} g_c g_d · D/(D−1), whose mean has no such excess however observations of one
    cluster depend on each other (Kumar, Liang & Ma 2019 debias for independent ones; the error of one side can come
    out below 0). The interval is the delete-one-cluster jackknife of the change with t_{D−1} (Efron & Stein 1981:
    its variance errs upwards, so it is conservative where neither side is miscalibrated). None for fewer than three
    clusters; of no width, and saying so, where no cluster differs between both sides.

    Raises ValueError for no observation, values out of range, lengths that differ, or bins < 1.
    """
    if bins < 1:
        raise ValueError(f"calibration shift: found {bins} bins, expected at least 1")
    sides = [check_outcomes(*reference), check_outcomes(*variant)]
    labels = np.asarray(clusters)
    if not len(labels) == len(sides[0][0]) == len(sides[1][0]):
        raise ValueError(
            f"calibration shift: found {len(sides[0][0])} and {len(sides[1][0])} observations, {len(labels)} labels"
        )
    before, after = _sums(sides[0], sides[1], labels, bins)
    values = _debias(before), _debias(after)
    change = values[1] - values[0]
    return CalibrationShift(values[0], values[1], change, _jackknife(before, after, change, confidence))


def _sums(
    reference: tuple[Floats, Floats], variant: tuple[Floats, Floats], labels: NDArray[np.generic], bins: int
) -> tuple[_BinSums, _BinSums]:
    """Sums of both sides, added up in an order that depends on the content alone."""
    order = np.lexsort((variant[1], variant[0], reference[1], reference[0]))
    member = np.unique(labels, return_inverse=True)[1][order]
    both = np.concatenate([reference[0], variant[0]])
    edges = np.unique(np.quantile(both, np.arange(1, bins) / bins, method="inverted_cdf"))
    count, size = int(member.max()) + 1, len(edges) + 1
    tables: list[Floats] = []
    for sure, right in (reference, variant):
        cell = member * size + np.searchsorted(edges, sure[order], side="left")
        gaps = np.bincount(cell, weights=sure[order] - right[order], minlength=count * size)
        sizes = np.bincount(cell, minlength=count * size).astype(np.float64)
        tables += [gaps.astype(np.float64).reshape(count, size), sizes.reshape(count, size)]
    canonical = np.lexsort(np.concatenate(tables, axis=1).T)
    before, after = (_BinSums(tables[at][canonical], tables[at + 1][canonical]) for at in (0, 2))
    return before, after


def _debias(side: _BinSums) -> float:
    """The squared calibration error from products of different clusters; 0 where there is one cluster."""
    count = len(side.gaps)
    if count < 2:
        return 0.0
    products = side.gaps.sum(axis=0) ** 2 - (side.gaps**2).sum(axis=0)
    return float(_total(products, side.sizes.sum(axis=0)) * count / (count - 1))


def _total(products: Floats, sizes: Floats) -> Floats:
    """Σ_b products_b / (n_b N) over the bins that hold anything; the last axis are bins."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(sizes > 0, products / sizes, 0.0)
    found: Floats = terms.sum(axis=-1) / sizes.sum(axis=-1)
    return found


def _leave_one_out(side: _BinSums) -> Floats:
    """The debiased error without each cluster in turn."""
    gaps = side.gaps.sum(axis=0) - side.gaps
    squares = (side.gaps**2).sum(axis=0) - side.gaps**2
    count = len(side.gaps) - 1
    return _total(gaps**2 - squares, side.sizes.sum(axis=0) - side.sizes) * count / (count - 1)


def _jackknife(before: _BinSums, after: _BinSums, change: float, confidence: float) -> Interval | None:
    count = len(before.gaps)
    if count < 3:
        return None
    if (before.gaps == after.gaps).all() and (before.sizes == after.sizes).all():
        return Interval(change, change, f"no interval: none of {count} clusters differs between both sides")
    without = _leave_one_out(after) - _leave_one_out(before)
    error = math.sqrt((count - 1) / count * math.fsum(((without - without.mean()) ** 2).tolist()))
    if not error > 0:
        return Interval(change, change, f"no interval: the {count} clusters show no spread")
    half = t_quantile((1 + confidence) / 2, count - 1) * error
    return Interval(change - half, change + half, f"cluster jackknife, t with {count - 1} degrees of freedom")
