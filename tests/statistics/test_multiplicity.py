"""Where p-values and Holm's procedure change their answer, to the last bit."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from harness.statistics.multiplicity import holm, p_value_of_interval


@pytest.mark.parametrize("half", [0.0, -0.1])
def test_without_width_an_estimate_is_beyond_the_limit_or_not(half: float) -> None:
    assert [p_value_of_interval(distance, half, 0.95, 30) for distance in (-0.5, 0.0, 0.5)] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("distance", [-0.7, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_quantile_follows_the_clusters(distance: float, confidence: float) -> None:
    """With two clusters the t distribution has one degree of freedom; with fewer there is none, and it is normal."""
    tail = (1 + confidence) / 2
    for clusters in (2, 3, 30):
        t = stats.t(clusters - 1)
        found = p_value_of_interval(distance, 0.5, confidence, clusters)
        assert found == pytest.approx(t.sf(distance / 0.5 * t.ppf(tail)), rel=1e-9)
    for clusters in (0, 1):
        found = p_value_of_interval(distance, 0.5, confidence, clusters)
        assert found == pytest.approx(stats.norm.sf(distance / 0.5 * stats.norm.ppf(tail)), rel=1e-9)


def test_a_p_value_that_equals_its_limit_is_rejected() -> None:
    """Holm 1979: rejected while p ≤ α / (hypotheses left)."""
    above = math.nextafter(0.025, 1)
    assert holm([0.025], 0.025) == [True]
    assert holm([above], 0.025) == [False]
    assert holm([0.025, 0.0125], 0.025) == [True, True]
    assert holm([above, 0.0125], 0.025) == [False, True]
    assert holm([0.025, math.nextafter(0.0125, 1)], 0.025) == [False, False], "the first that holds ends it"
    assert holm([], 0.025) == []


def test_an_unknown_p_value_counts_as_a_hypothesis_and_is_never_rejected() -> None:
    assert holm([math.nan, 0.02], 0.05) == [False, True]
    assert holm([math.nan, 0.03], 0.05) == [False, False]
    assert holm([math.nan, math.nan, 0.001], 0.05) == [False, False, True]
