"""Kaplan-Meier, restricted means and their intervals against statsmodels and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.duration.survfunc import SurvfuncRight

from harness.statistics import mean, mean_interval, median_time, restricted_mean, restricted_mean_interval, survival
from harness.statistics.survival import _pseudo_values

HORIZON = 12
observations = st.lists(st.tuples(st.integers(0, HORIZON - 1), st.booleans()), min_size=2, max_size=25)


@given(observations)
def test_the_curve_is_the_product_limit_estimator_of_statsmodels(found: list[tuple[int, bool]]) -> None:
    times, events = (np.array(column) for column in zip(*found, strict=True))
    curve = survival(times, events, HORIZON)
    assert curve[0] == 1.0
    # A censored time says that the units before it were seen, so there it is censored just before.
    other = SurvfuncRight(np.where(events, times, times - 0.5) + 1.0, events.astype(int))
    for unit in range(HORIZON):
        at = other.surv_prob[other.surv_times <= unit + 1]
        assert curve[unit + 1] == pytest.approx(at[-1] if len(at) else 1.0, abs=1e-12)


def test_without_censoring_it_is_the_plain_mean_and_median() -> None:
    times = np.array([3, 5, 5, 9, HORIZON, HORIZON])
    events = times < HORIZON
    clusters = np.arange(6)
    assert restricted_mean(times, events, HORIZON) == pytest.approx(times.mean())
    assert median_time(times, events, HORIZON) == 5
    pseudo = _pseudo_values(times, events, HORIZON, restricted_mean(times, events, HORIZON))
    np.testing.assert_allclose(pseudo, times, atol=1e-9)
    found, wanted = restricted_mean_interval(times, events, clusters, HORIZON), mean_interval(times, clusters)
    assert found is not None
    assert wanted is not None
    assert (found.low, found.high) == pytest.approx((wanted.low, min(wanted.high, HORIZON)))


def test_dropping_those_that_never_part_would_say_something_else() -> None:
    times, events = np.array([2, 4, HORIZON, HORIZON]), np.array([True, True, False, False])
    assert mean(times[events].astype(float)) == 3.0
    assert restricted_mean(times, events, HORIZON) == pytest.approx((2 + 4 + 12 + 12) / 4)
    assert median_time(times, events, HORIZON) == 4


def test_texts_that_end_early_without_parting_count_as_going_on() -> None:
    times, events = np.array([2, 6, 6, 6]), np.array([True, False, False, False])
    assert restricted_mean(times, events, HORIZON) == pytest.approx(2 + 0.75 * 10)


@pytest.mark.parametrize("ended", [False, True])
def test_where_nothing_parts_all_is_at_the_horizon_and_bounded(ended: bool) -> None:
    times = np.full(30, 5 if ended else HORIZON)
    events = np.zeros(30, dtype=bool)
    assert restricted_mean(times, events, HORIZON) == HORIZON
    found = restricted_mean_interval(times, events, np.arange(30), HORIZON)
    assert found is not None
    assert found.high == HORIZON
    assert found.low == pytest.approx(HORIZON * 0.025 ** (1 / 30))
    assert median_time(times, events, HORIZON) == HORIZON


def test_intervals_mind_clusters_and_cover_the_truth() -> None:
    generator = np.random.default_rng(0)
    truth = sum(0.9**t for t in range(1, HORIZON + 1))
    covered = 0
    for _ in range(300):
        drawn = generator.geometric(0.1, 60) - 1
        seen = generator.integers(4, 30, 60)
        events = (drawn < seen) & (drawn < HORIZON)
        times = np.minimum(np.where(events, drawn, np.minimum(drawn, seen)), HORIZON)
        found = restricted_mean_interval(times, events, np.arange(60), HORIZON)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 300 <= 0.98
    twice = np.concatenate((times, times)), np.concatenate((events, events))
    alone = restricted_mean_interval(*twice, np.arange(120), HORIZON)
    together = restricted_mean_interval(*twice, np.tile(np.arange(60), 2), HORIZON)
    assert alone is not None
    assert together is not None
    assert together.high - together.low > 1.3 * (alone.high - alone.low)
    assert restricted_mean_interval(times, events, np.zeros(60), HORIZON) is None


def test_impossible_times_are_refused() -> None:
    for times, events in (([13], [False]), ([-1], [True]), ([1, 2], [True]), ([], [])):
        with pytest.raises(ValueError, match="survival"):
            survival(times, events, HORIZON)
