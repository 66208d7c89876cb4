"""Sums that do not depend on order, and what counts as spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.statistics.interval import (
    Interval,
    are_equal,
    cluster_sums,
    finite_array,
    lacks_spread,
    mean,
    ratio_of_sums,
    t_quantile,
    z_quantile,
)


def test_an_interval_is_extended_to_a_value_and_never_shrinks() -> None:
    found = Interval(1.0, 2.0, "m")
    assert found.around(1.5) == found
    assert found.around(0.5) == Interval(0.5, 2.0, "m")
    assert found.around(2.5) == Interval(1.0, 2.5, "m")


def test_quantiles_are_those_of_scipy() -> None:
    for probability in (0.1, 0.5, 0.975):
        assert z_quantile(probability) == pytest.approx(stats.norm.ppf(probability), abs=1e-12)
        assert t_quantile(probability, 4) == pytest.approx(stats.t(4).ppf(probability), abs=1e-12)


def test_only_rows_of_finite_numbers_are_taken() -> None:
    assert finite_array([], "x").tolist() == []
    assert finite_array([True, 2], "x").tolist() == [1.0, 2.0]
    for bad in (np.zeros((2, 2)), 1.0):
        with pytest.raises(ValueError, match="expected one dimension"):
            finite_array(bad, "x")
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="x: found NaN or infinity"):
            finite_array([0.0, value], "x")


def test_a_mean_is_the_correctly_rounded_sum_by_the_number() -> None:
    assert mean([1e16, 1.0, -1e16]) == 1 / 3
    assert mean([0.1] * 10) == 0.1
    assert mean([7.0]) == 7.0
    with pytest.raises(ValueError, match="at least one"):
        mean([])
    assert are_equal(np.array([2.0, 2.0]))
    assert not are_equal(np.array([2.0, math.nextafter(2.0, 3.0)]))


def test_a_ratio_of_sums() -> None:
    assert ratio_of_sums([1e16, 1.0, -1e16], [1.0, 2.0, 1.0]) == 0.25
    assert ratio_of_sums([0.1] * 3, [0.3] * 3) == 0.1 / 0.3
    assert ratio_of_sums([0.1] * 3, [0.3, 0.3, 0.9]) == math.fsum([0.1] * 3) / 1.5
    assert ratio_of_sums([0.1, 0.2], [0.5] * 2) == pytest.approx(0.3)
    assert ratio_of_sums([-1.0], [0.5]) == -2.0
    for bottom in ([0.0], [-1.0]):
        with pytest.raises(ValueError, match="expected more than 0"):
            ratio_of_sums([1.0], bottom)


def test_sums_of_clusters_come_in_the_order_of_their_sizes_whatever_the_labels() -> None:
    tops, bottoms = np.array([1.0, 2.0, 3.0, 4.0, 0.0]), np.array([1.0, 2.0, 1.0, 5.0, 3.0])
    sums = cluster_sums(tops, bottoms, ["b", "a", "b", "c", "c"])
    assert sums.numerator.tolist() == [2.0, 4.0, 4.0]
    assert sums.denominator.tolist() == [2.0, 2.0, 8.0]
    assert sums.count == 3
    alone = cluster_sums(tops, bottoms, [0] * 5)
    assert (alone.numerator.tolist(), alone.denominator.tolist(), alone.count) == ([10.0], [12.0], 1)
    each = cluster_sums(tops, bottoms, range(5))
    assert each.numerator.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("lengths", [(2, 3, 3), (3, 2, 3), (3, 3, 2)])
def test_lengths_that_differ_are_refused(lengths: tuple[int, int, int]) -> None:
    top, bottom, labels = (np.ones(length) for length in lengths)
    with pytest.raises(ValueError, match="cluster labels"):
        cluster_sums(top, bottom, labels)


def test_spread_of_a_few_roundings_is_none() -> None:
    """Up to 4 ulp of the two numbers that are compared, here 1 + 1."""
    eps = np.finfo(np.float64).eps
    ones = np.ones(3)
    for above, lacks in ((0.0, True), (7 * eps, True), (9 * eps, False), (1e-9, False)):
        sums = cluster_sums(ones + np.array([0.0, 0.0, above]), ones, range(3))
        assert lacks_spread(sums, 1.0) is lacks
    below = cluster_sums(ones - np.array([0.0, 0.0, 1e-9]), ones, range(3))
    assert not lacks_spread(below, 1.0)
    negative = cluster_sums(-ones, ones, range(3))
    assert lacks_spread(negative, -1.0)
    assert not lacks_spread(negative, 1.0)
    sizes = cluster_sums(np.array([0.3, 0.6]), np.array([1.0, 2.0]), range(2))
    assert lacks_spread(sizes, 0.3)
    assert lacks_spread(cluster_sums(np.zeros(2), np.ones(2), range(2)), 0.0), "a tie within a rounding of nothing"
