"""Intervals of bounded means beside their definitions written down again, and at the edges of their range."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.statistics import (
    Interval,
    bounded_mean_interval,
    mean_interval,
    paired_share_interval,
    proportion_interval,
    tango_interval,
)
from harness.statistics.bounded import _effective_size


def drawn(clusters: int, each: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Successes of clusters of different sizes, with different shares of them."""
    generator = np.random.default_rng(seed)
    labels = np.arange(clusters).repeat(generator.integers(each // 2, each + 1, clusters))
    share = stats.norm.cdf(0.5 + spread * generator.normal(size=clusters))[labels]
    return generator.random(len(labels)) < share, labels


def effective_size(successes: np.ndarray, labels: np.ndarray, confidence: float) -> float:
    """Korn & Graubard 1998, with the linearised variance of a ratio."""
    values = pd.Series(successes.astype(float))
    share, n = values.mean(), len(values)
    residual = (values - share).groupby(labels).sum()
    clusters = len(residual)
    variance = clusters / (clusters - 1) * (residual**2).sum() / n**2
    size = min(n, share * (1 - share) / variance)
    tail = (1 + confidence) / 2
    return float(size * (stats.t(n - 1).ppf(tail) / stats.t(clusters - 1).ppf(tail)) ** 2)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize(("clusters", "each", "spread"), [(2, 9, 1.0), (3, 20, 1.0), (30, 10, 1.0), (30, 10, 0.0)])
def test_a_share_has_the_exact_interval_at_its_effective_size(
    clusters: int, each: int, spread: float, confidence: float
) -> None:
    successes, labels = drawn(clusters, each, seed=clusters, spread=spread)
    found = proportion_interval(successes, labels, confidence)
    assert found is not None
    size, share = effective_size(successes, labels, confidence), float(successes.mean())
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, share * size, size - share * size + 1)
    high = stats.beta.isf(tail, share * size + 1, size - share * size)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-7)
    assert found.method == f"Korn-Graubard (Clopper-Pearson at the effective sample size {size:.1f})"


def test_clusters_without_spread_count_once() -> None:
    """Thirty copies of one cluster, and clusters so alike that their shares are the same."""
    successes, labels = np.tile([1, 0, 1, 1], 30), np.arange(30).repeat(4)
    size = _effective_size(successes.astype(float), labels, 0.95)
    assert size == pytest.approx(30 * (stats.t(119).ppf(0.975) / stats.t(29).ppf(0.975)) ** 2, rel=1e-9)


def test_one_cluster_has_no_interval_and_two_have_one() -> None:
    assert proportion_interval([1, 0, 1], [5, 5, 5]) is None
    assert proportion_interval([], []) is None
    assert proportion_interval([1, 1], [5, 5]) is None
    assert proportion_interval([1, 1], [5, 6]) is not None
    assert proportion_interval([1, 0, 1], [5, 5, 6]) is not None
    assert bounded_mean_interval([0.5, 0.5], [5, 5], 0.0, 1.0) is None
    assert bounded_mean_interval([], [], 0.0, 1.0) is None
    with pytest.raises(ValueError, match="other than 0 and 1"):
        proportion_interval([1, 0.5], [0, 1])


@pytest.mark.parametrize("count", [2, 7, 40])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize(
    ("value", "least", "most", "largest"),
    [(0.0, 0.0, 1.0, math.inf), (1.0, 0.0, 1.0, 1.0), (0.25, 0.0, 1.0, math.inf), (0.25, -1.0, 1.0, 0.5),
     (0.25, 0.0, 1.0, 0.125), (0.5, 0.0, 1.0, 0.5)],
)  # fmt: skip
def test_where_all_are_equal_as_many_clusters_may_differ_as_none_of_those_seen_did(
    value: float, least: float, most: float, largest: float, confidence: float, count: int
) -> None:
    """1 − α^(1/n) of the clusters may be away by as much as the range or the declaration allows."""
    found = bounded_mean_interval(
        np.full(3 * count, value), np.arange(count).repeat(3), least, most, confidence, largest
    )
    share = 1 - ((1 - confidence) / 2) ** (1 / count)
    below, above = min(largest, value - least), min(largest, most - value)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((value - share * below, value + share * above), rel=1e-9)
    far = f"each by at most {largest:g}, as declared" if largest < most - least else "each as far as the range goes"
    assert found.method == f"Clopper-Pearson bound on the share of documents that differ (none of {count} did), {far}"


def test_a_share_of_all_or_nothing_minds_what_is_declared() -> None:
    share = 1 - 0.025 ** (1 / 9)
    for value in (0.0, 1.0):
        found = proportion_interval(np.full(9, value), np.arange(9), largest=0.25)
        assert found is not None
        ends = (value, 0.25 * share) if value == 0 else (1 - 0.25 * share, 1.0)
        assert (found.low, found.high) == pytest.approx(ends, rel=1e-9)
    found = proportion_interval(np.ones(9), np.arange(9))
    assert found is not None
    assert found.low == pytest.approx(1 - share, rel=1e-9)


def test_ends_stay_in_the_range_and_are_else_those_of_the_mean() -> None:
    values, labels = np.array([0.0, 0.0, 0.1, 1.0, 0.9, 1.0]), np.arange(6)
    plain, found = mean_interval(values, labels), bounded_mean_interval(values, labels, 0.0, 1.0)
    assert plain is not None
    assert plain.low < 0.0
    assert plain.high > 1.0
    assert found == Interval(0.0, 1.0, plain.method)
    assert bounded_mean_interval(values, labels, -9.0, 9.0) == plain


@pytest.mark.parametrize(("values", "refused"), [([0.25, 0.75], False), ([0.2, 0.5], True), ([0.5, 0.8], True)])
def test_values_may_be_at_the_ends_of_the_range_and_not_beyond(values: list[float], refused: bool) -> None:
    if refused:
        with pytest.raises(ValueError, match=r"expected 0\.25 to 0\.75"):
            bounded_mean_interval(values, [0, 1], 0.25, 0.75)
    else:
        assert bounded_mean_interval(values, [0, 1], 0.25, 0.75) is not None


def test_of_pairs_that_belong_together_the_first_counts() -> None:
    first, second = [1, 1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 1, 0, 0]
    labels = ["a", "b", "c", "d", "e", "a", "a"]
    found, wanted = paired_share_interval(first, second, labels, 0.9), tango_interval(1, 1, 5, 0.9)
    assert found is not None
    assert wanted is not None
    difference = (1 - 3) / 7
    assert (found.low, found.high) == (min(wanted.low, difference), wanted.high)
    gained = paired_share_interval([0, 0, 1, 0], [1, 1, 1, 0], range(4))
    assert gained == tango_interval(2, 0, 4)
    lost = paired_share_interval([1, 1, 1, 0], [0, 1, 1, 0], range(4))
    assert lost == tango_interval(0, 1, 4)
    assert paired_share_interval([], [], []) is None


def test_pairs_all_of_one_cluster_are_one_pair_with_the_difference_of_all() -> None:
    found, wanted = paired_share_interval([1, 1, 1, 1], [1, 0, 0, 0], [7] * 4), tango_interval(0, 0, 1)
    assert found is not None
    assert wanted is not None
    assert (found.low, found.high) == (min(wanted.low, -0.75), wanted.high)
