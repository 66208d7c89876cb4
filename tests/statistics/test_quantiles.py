"""Woodruff's interval beside its definition, written down again with pandas and scipy."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.statistics import Interval, quantile_intervals, quantiles


def drawn(clusters: int, each: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations of clusters that lie apart by ``spread``; the sizes of clusters differ."""
    generator = np.random.default_rng(seed)
    labels = np.arange(clusters).repeat(generator.integers(each // 2, each + 1, clusters))
    return spread * generator.normal(size=clusters)[labels] + generator.normal(size=len(labels)), labels


def by_definition(values: np.ndarray, labels: np.ndarray, probability: float, confidence: float) -> tuple[float, float]:
    """The order statistics at p ∓ t · SE, outward."""
    below = pd.Series(values <= np.quantile(values, probability)).astype(float)
    residual = (below - below.mean()).groupby(labels).sum()
    clusters, n = len(residual), len(values)
    clustered = (clusters * residual.var(ddof=0)) * clusters / (clusters - 1) / n**2
    error = np.sqrt(max(clustered, probability * (1 - probability) / n))
    half = stats.t(clusters - 1).ppf((1 + confidence) / 2) * error
    ordered = np.sort(values)
    low, high = (probability - half) * (n - 1), (probability + half) * (n - 1)
    return ordered[int(np.floor(low))], ordered[int(np.ceil(high))]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("probability", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(("clusters", "spread"), [(5, 0.15), (9, 0.5), (40, 1.0), (40, 0.0)])
def test_ends_are_the_order_statistics_of_the_definition(
    clusters: int, spread: float, probability: float, confidence: float
) -> None:
    """Each of many observations is an order statistic of its own, so an end moves with a change of a few percent."""
    values, labels = drawn(clusters, 400, spread, seed=clusters)
    (found,) = quantile_intervals(values, labels, [probability], confidence)
    assert found is not None
    assert (found.low, found.high) == by_definition(values, labels, probability, confidence)
    assert found.method == f"Woodruff, cluster t, {clusters - 1} degrees of freedom"


def test_two_clusters_are_enough_for_an_interval_and_one_is_not() -> None:
    values, labels = drawn(2, 4000, 0.0, seed=1)
    (found,) = quantile_intervals(values, labels, [0.5], 0.8)
    assert found is not None
    assert found.method == "Woodruff, cluster t, 1 degrees of freedom"
    assert quantile_intervals(values, np.zeros(len(values)), [0.5], 0.8) == (None,)
    assert quantile_intervals([], [], [0.5, 0.9]) == (None, None)


def test_an_end_at_the_edge_of_the_sample_bounds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four clusters of one value below the median and one above: the standard error is 1/4, twice it 1/2 exactly."""
    module = importlib.import_module("harness.statistics.quantiles")  # The package has a function of this name.
    for quantile, found in ((1.99, Interval(1.0, 8.0, "Woodruff, cluster t, 3 degrees of freedom")), (2.0, None)):
        monkeypatch.setattr(module, "t_quantile", lambda *_, q=quantile: q)
        assert quantile_intervals(np.arange(1.0, 9.0), [0, 1, 2, 3, 3, 2, 1, 0], [0.5]) == (found,)


def test_copies_of_a_cluster_count_once() -> None:
    """The share below the quantile is the same in each, so the binomial error is that of as many draws as clusters."""
    (found,) = quantile_intervals(np.tile(np.arange(100.0), 30), np.arange(30).repeat(100), [0.5])
    half = stats.t(29).ppf(0.975) * np.sqrt(0.25 / 30)
    assert found is not None
    assert found.low == np.floor((0.5 - half) * 2999) // 30
    assert found.high == np.ceil((0.5 + half) * 2999) // 30


def test_estimates_interpolate_between_the_two_order_statistics_around_them() -> None:
    assert quantiles([4.0, 1.0, 2.0], [0.0, 0.25, 0.5, 0.75, 1.0]) == (1.0, 1.5, 2.0, 3.0, 4.0)
    assert quantiles([3.0], [0.1, 0.9]) == (3.0, 3.0)
    with pytest.raises(ValueError, match="at least one"):
        quantiles([], [0.5])
