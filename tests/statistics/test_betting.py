"""Confidence sequences by betting: against brute force, exact binomial bounds, and simulated peeking."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics import Betting, Interval
from harness.statistics.betting import STAKES, betting_interval


def stake(documents: list[list[float]], mean: float, most: float, largest: int) -> float:
    """What the gambler has, written down as the definition says it: a product for each bet, then their average."""
    total = 0.0
    for share in STAKES:
        product = 1.0
        for document in documents:
            move = sum(value - mean for value in document) / largest
            product *= 1 - share / (most - mean) * move
        total += product
    return total / len(STAKES)


def brute_force(documents: list[list[float]], least: float, most: float, largest: int) -> tuple[float, float]:
    """Both ends among 400 candidates: means at which neither gambler has 40 times what he began with."""
    grid = np.linspace(least, most, 401)[1:-1]
    flipped = [[least + most - value for value in document] for document in documents]
    kept = [
        mean
        for mean in grid
        if stake(documents, mean, most, largest) < 40 and stake(flipped, least + most - mean, most, largest) < 40
    ]
    return float(kept[0]), float(kept[-1])


def interval(documents: list[list[float]], least: float, most: float, largest: int | None = None) -> Interval:
    values = [value for document in documents for value in document]
    labels = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    found = betting_interval(values, labels, least, most, largest)
    assert found is not None
    return found


@pytest.mark.parametrize(("least", "most"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 0.2)])
@pytest.mark.parametrize("sizes", [[1] * 40, [3, 5, 1, 8] * 5])
def test_ends_are_those_of_brute_force(least: float, most: float, sizes: list[int]) -> None:
    rng = np.random.default_rng(3)
    documents = [(least + (most - least) * rng.beta(1, 4, size)).tolist() for size in sizes]
    found, step = interval(documents, least, most, max(sizes)), (most - least) / 400
    low, high = brute_force(documents, least, most, max(sizes))
    assert found.low == pytest.approx(low, abs=1.5 * step)
    assert found.high == pytest.approx(high, abs=1.5 * step)


@pytest.mark.parametrize("n", [5, 50, 500])
def test_no_event_at_all_leaves_what_can_be_excluded_and_no_less(n: int) -> None:
    """Nobody who bets all on it can exclude more than 1 − α^(1/n), and the average over bets costs a factor 7."""
    found = interval([[0.0]] * n, 0.0, 1.0)
    assert found.low == 0.0
    assert found.high > 1 - 0.025 ** (1 / n)
    assert found.high == pytest.approx(1 - (0.025 / 7) ** (1 / n), rel=0.1)
    assert interval([[1.0]] * n, 0.0, 1.0).low == pytest.approx(1 - found.high, abs=1e-12)


@given(
    data=st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=2, max_size=12),
    seed=st.integers(0, 100),
)
@settings(max_examples=40)
def test_order_does_not_matter_and_the_mean_is_inside(data: list[list[float]], seed: int) -> None:
    found = interval(data, 0.0, 1.0, 4)
    shuffled = [data[place] for place in np.random.default_rng(seed).permutation(len(data))]
    again = interval(shuffled, 0.0, 1.0, 4)
    assert (again.low, again.high) == (found.low, found.high)
    value = sum(map(sum, data)) / sum(map(len, data))
    assert 0 <= found.low <= value + 1e-12
    assert value - 1e-12 <= found.high <= 1
    assert found.low < found.high


@given(data=st.lists(st.floats(0, 1), min_size=2, max_size=30), more=st.floats(0.0, 1.0))
@settings(max_examples=40)
def test_a_larger_value_never_lowers_an_end(data: list[float], more: float) -> None:
    raised = [min(1.0, data[0] + more), *data[1:]]
    before, after = (interval([[value] for value in values], 0.0, 1.0) for values in (data, raised))
    assert after.low >= before.low - 1e-12
    assert after.high >= before.high - 1e-12


def test_small_documents_are_small_bets() -> None:
    rng = np.random.default_rng(5)
    small = [(rng.random(2) < 0.9).astype(float).tolist() for _ in range(100)]
    assert interval(small, 0.0, 1.0, 2).low > interval(small, 0.0, 1.0, 40).low
    assert interval(small, 0.0, 1.0, None).low == interval(small, 0.0, 1.0, 2).low


@pytest.mark.parametrize(
    ("values", "labels", "largest"),
    [([0.5, 1.2], [0, 1], None), ([0.5, -0.1], [0, 1], None), ([0.5, 0.5, 0.5], [0, 0, 1], 1), ([math.nan], [0], None)],
)
def test_what_contradicts_the_bounds_is_refused(values: list[float], labels: list[int], largest: Any) -> None:
    with pytest.raises(ValueError):
        betting_interval(values, labels, 0.0, 1.0, largest)


def test_nothing_and_a_single_document_have_no_interval() -> None:
    assert betting_interval([], [], 0.0, 1.0) is None
    at = Betting.at([40], 400)
    assert at.proportion([1.0, 0.0], [3, 3]) is None
    assert at.bounded_mean([0.2, 0.4], [3, 3], 0.0, 1.0) is None


def test_only_what_is_bounded_is_bet_on() -> None:
    rng = np.random.default_rng(6)
    values, labels = rng.random(600), np.repeat(np.arange(60), 10)
    at = Betting.at([40, 60], 400)
    for found in (at.proportion(values < 0.9, labels), at.bounded_mean(values, labels, 0.0, 1.0)):
        assert found is not None
        assert found.method == (
            "betting on 60 clusters of at most 10 values, valid at any look; look 2 at 60 of at most 400 documents, "
            "all looks together 95 %"
        )
    for found in (at.mean(values, labels, skewed=True), at.ratio_of_sums(values, values + 1, labels)):
        assert found is not None
        assert "group-sequential" in found.method
        assert "betting" not in found.method


@pytest.mark.parametrize("truth", [0.05, 0.3])
def test_peeking_after_every_document_seldom_loses_the_truth(truth: float) -> None:
    """400 runs of 150 documents: 5 % on both sides together, and three standard errors are 8.3 %; so many are left."""
    rng = np.random.default_rng(7)
    lost = 0
    for _ in range(400):
        outcomes = (rng.random(150) < truth) * 1.0
        totals = np.cumsum(outcomes)
        seen = np.arange(1, 151)
        above = _log_stakes(totals, seen, truth)
        below = _log_stakes(seen - totals, seen, 1 - truth)
        lost += max(above.max(), below.max()) >= math.log(40)
    assert lost / 400 <= 0.083


def _log_stakes(totals: np.ndarray, seen: np.ndarray, mean: float) -> np.ndarray:
    """After each document, for outcomes of 0 and 1."""
    shares = np.array(STAKES)[:, None]
    won = totals * np.log1p(-shares) + (seen - totals) * np.log1p(shares * mean / (1 - mean))
    return np.asarray(np.logaddexp.reduce(won, axis=0)) - math.log(len(STAKES))


def test_the_stakes_after_every_document_are_those_of_the_interval() -> None:
    found = interval([[1.0], [0.0], [0.0], [0.0]] * 20, 0.0, 1.0)
    at_end = _log_stakes(np.array([20.0]), np.array([80]), found.high)
    assert at_end[0] == pytest.approx(math.log(40), abs=1e-9)


def test_stakes_are_halved_from_just_below_all() -> None:
    assert len(STAKES) == 7
    assert STAKES[0] == 0.98
    assert all(larger == 2 * smaller for larger, smaller in pairwise(STAKES))


@pytest.mark.parametrize("largest", [2, 3])
def test_the_largest_document_may_be_as_large_as_declared(largest: int) -> None:
    found = betting_interval([0.0, 1.0, 0.0], [0, 0, 1], 0.0, 1.0, largest)
    assert found is not None
    assert found.method == f"betting on 2 clusters of at most {largest} values"
    with pytest.raises(ValueError, match="found a cluster of 2 values, expected at most 1"):
        betting_interval([0.0, 1.0, 0.0], [0, 0, 1], 0.0, 1.0, 1)
    assert betting_interval([0.25, 0.75], [0, 1], 0.25, 0.75) is not None, "values at both ends of the range"


def test_a_range_away_from_zero_is_a_shift_and_a_scale() -> None:
    rng = np.random.default_rng(8)
    unit = [[float(value)] for value in rng.beta(2, 5, 40)]
    moved = [[3 + 4 * value[0]] for value in unit]
    found, other = interval(unit, 0.0, 1.0), interval(moved, 3.0, 7.0)
    assert (other.low, other.high) == pytest.approx((3 + 4 * found.low, 3 + 4 * found.high), abs=1e-9)
