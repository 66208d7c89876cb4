"""Intervals of means: where one law gives way to the next, and what is declared where nothing was seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy import optimize, stats

from harness.statistics import GroupSequential, Interval, Intervals, mean_interval, ratio_of_sums_interval
from harness.statistics.means import _invert_skew
from tests.helpers.results import interval


def skewed(documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal values, one for each document."""
    return np.exp(np.random.default_rng(documents).normal(size=documents)), np.arange(documents)


@pytest.mark.parametrize(("documents", "asks"), [(19, True), (20, False), (21, False)])
def test_twenty_clusters_are_enough_without_the_bootstrap(documents: int, asks: bool) -> None:
    values, labels = skewed(documents)
    for found in (mean_interval(values, labels), ratio_of_sums_interval(values, np.ones(documents), labels)):
        assert interval(found).method == f"cluster t, {documents - 1} degrees of freedom" + (
            ", widened by cluster bootstrap-t" if asks else ""
        )


@pytest.mark.parametrize(("documents", "asks"), [(99, True), (100, False), (101, False)])
def test_a_hundred_skewed_clusters_are(documents: int, asks: bool) -> None:
    widened = "Hall's transformation" + (" and cluster bootstrap-t" if asks else "")
    assert interval(mean_interval(*skewed(documents), skewed=True)).method == (
        f"cluster t, {documents - 1} degrees of freedom, widened by {widened}"
    )


@pytest.mark.parametrize("documents", [120, 300])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_both_ends_are_the_farther_of_t_and_hall(documents: int, confidence: float) -> None:
    """On the long side Hall's reaches farther, on the short one t; both count the skewness as a parameter."""
    values, labels = skewed(documents)
    found = interval(mean_interval(values, labels, confidence, skewed=True))
    error = values.std(ddof=1) / math.sqrt(documents) * math.sqrt(documents / (documents - 2))
    t = stats.t(documents - 1).ppf((1 + confidence) / 2)
    assert found.low == pytest.approx(values.mean() - t * error, rel=1e-9)
    lean = stats.skew(values) / math.sqrt(documents)

    def transformed(at: float) -> float:
        return float(at + lean * at**2 / 3 + lean**2 * at**3 / 27 + lean / 6)

    root = optimize.brentq(lambda at: transformed(at) + t, -50, 50)
    assert found.high == pytest.approx(values.mean() - root * error, rel=1e-9)


def test_a_skewness_of_nothing_leaves_the_quantile_and_a_small_one_moves_it_a_little() -> None:
    """Hall's transformation is t + a t²/3 + a/6 and higher powers of a, the skewness over √D."""
    assert _invert_skew(2.0, np.array([-1.0, 1.0])) == 2.0
    residuals = np.array([-1.0] * 500 + [1.0] * 500 + [1.002])
    lean = float(stats.skew(residuals, bias=True)) / math.sqrt(1001)
    raw = float((residuals**3).mean() / (residuals**2).mean() ** 1.5) / math.sqrt(1001)
    assert raw > 1e-6
    assert raw != pytest.approx(lean), "residuals are taken as they are: those of a mean sum to nothing"
    assert _invert_skew(2.0, residuals) == pytest.approx(2.0 - raw * (4 / 3 + 1 / 6), abs=1e-8)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("clusters", [2, 3, 30])
def test_where_nothing_changed_so_many_clusters_may_by_as_much_as_declared(clusters: int, confidence: float) -> None:
    found = interval(
        mean_interval(np.zeros(3 * clusters), np.arange(clusters).repeat(3), confidence, largest=0.5)
    )  # fmt: skip
    reach = 0.5 * (1 - ((1 - confidence) / 2) ** (1 / clusters))
    assert (found.low, found.high) == pytest.approx((-reach, reach), rel=1e-9)
    assert f"none of {clusters} did), each by at most 0.5, as declared" in found.method


def test_what_is_declared_counts_only_where_nothing_changed_at_all() -> None:
    zeros = np.zeros(30)
    assert interval(mean_interval(zeros, range(30))).method == "no interval: all 30 values are exactly equal"
    assert mean_interval(zeros, [0] * 30, largest=0.5) is None
    assert mean_interval([], [], largest=0.5) is None
    ones = np.ones(30)
    assert mean_interval(ones, range(30), largest=0.5) == mean_interval(ones, range(30))
    values = np.random.default_rng(0).normal(size=30)
    assert mean_interval(values, range(30), largest=0.5) == mean_interval(values, range(30))
    values[0] = 0.0
    assert mean_interval(values, range(30), largest=0.5) == mean_interval(values, range(30))


def test_two_clusters_have_an_interval() -> None:
    found = interval(mean_interval([1.0, 2.0], [0, 1], 0.5))
    assert found.low <= 1.5 - stats.t(1).ppf(0.75) * 0.5
    assert found.high >= 1.5 + stats.t(1).ppf(0.75) * 0.5
    assert mean_interval([1.0, 2.0], [0, 0]) is None
    skew = interval(mean_interval([0.0, 1.0], [0, 1], 0.5, skewed=True))
    assert math.isfinite(skew.high)


def test_few_skewed_documents_count_the_skewness_down_to_three() -> None:
    """√(D/(D − 2)), at most √D."""
    for documents, factor in ((2, math.sqrt(2)), (3, math.sqrt(3)), (4, math.sqrt(2))):
        values = np.arange(documents) * 1.0 - (documents - 1) / 2
        plain, wide = (
            interval(mean_interval(np.concatenate([values]), range(documents), 0.5, skewed=each))
            for each in (False, True)
        )
        assert wide.high - wide.low == pytest.approx(factor * (plain.high - plain.low), rel=1e-9)


def test_every_kind_is_of_95_percent_unless_told_otherwise_and_several_share_the_error() -> None:
    assert Intervals().confidence == GroupSequential().together == 0.95
    assert [Intervals().among(count).confidence for count in (1, 2, 5)] == pytest.approx([0.95, 0.975, 0.99])
    values, labels = skewed(50)
    estimates: tuple[Callable[..., Interval | None], ...] = (
        partial(mean_interval, values, labels), partial(ratio_of_sums_interval, values, values + 1, labels),
    )  # fmt: skip
    for estimate in estimates:
        assert estimate() == estimate(confidence=0.95)
        narrow, wide = (interval(estimate(confidence=confidence)) for confidence in (0.5, 0.9))
        assert wide.low < narrow.low < narrow.high < wide.high
