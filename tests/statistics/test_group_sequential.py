"""Bounds of planned looks against published tables and the normal distribution of all looks at once."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri

from harness.statistics import GroupSequential, Interval, Intervals, mean_interval, planned_looks
from harness.statistics.group_sequential import LEAST_GROWTH, LOOKS, Spending, look_bounds, spend


def obrien_fleming(share: float) -> float:
    """Lan & DeMets 1983, for one side of 5 %."""
    return 2 * (1 - float(stats.norm.cdf(ndtri(1 - 0.0125) / math.sqrt(share)))) / 0.025


def pocock(share: float) -> float:
    return math.log(1 + (math.e - 1) * share)


# Two-sided 5 %, equally spaced looks: Reboussin, DeMets, Kim & Lan 2000; Jennison & Turnbull 2000, chapter 7.
@pytest.mark.parametrize(
    ("spending", "published"),
    [
        (obrien_fleming, (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        (pocock, (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
        (obrien_fleming, (2.9626, 1.9686)),
        (pocock, (2.1570, 2.2010)),
    ],
)
def test_bounds_are_those_of_published_tables(spending: Spending, published: tuple[float, ...]) -> None:
    looks = len(published)
    found = look_bounds([number / looks for number in range(1, looks + 1)], 0.025, spending)
    assert found == pytest.approx(published, abs=2e-3)


@pytest.mark.parametrize(
    ("looks", "constant", "shape"),
    [(2, 2.178, 0.0), (3, 2.289, 0.0), (5, 2.413, 0.0), (2, 1.977, 0.5), (5, 2.040, 0.5), (3, 2.004, 0.5)],
)
def test_crossing_probabilities_are_those_of_pocock_and_of_obrien_and_fleming(
    looks: int, constant: float, shape: float
) -> None:
    """Their bounds, constant · share^(−shape), are crossed with 5 % (two-sided; Jennison & Turnbull, tables 2.1, 2.3).

    Found by asking which spending gives the same bounds: what is spent at the last look must be all of it.
    """
    shares = [number / looks for number in range(1, looks + 1)]
    wanted = [constant * share**-shape for share in shares]
    below = [multivariate(shares[:number], wanted[:number]) for number in range(1, looks + 1)]
    used = {share: (1 - under) / 0.025 for share, under in zip(shares, below, strict=True)}
    assert used[1.0] == pytest.approx(1.0, abs=0.02)
    assert look_bounds(shares, 0.025, used.__getitem__) == pytest.approx(wanted, abs=2e-3)


def multivariate(shares: list[float], bounds: list[float]) -> float:
    """P(every statistic is below its bound), by the multivariate normal distribution of all looks."""
    if len(shares) == 1:
        return float(stats.norm.cdf(bounds[0]))
    covariance = np.sqrt(np.minimum.outer(shares, shares) / np.maximum.outer(shares, shares))
    law = stats.multivariate_normal(np.zeros(len(shares)), covariance, seed=1, maxpts=100_000, abseps=1e-6)
    return float(law.cdf(np.array(bounds)))


@given(steps=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=6), error=st.sampled_from([0.005, 0.025, 0.1]))
@settings(max_examples=15)
def test_all_looks_together_spend_exactly_the_error(steps: list[float], error: float) -> None:
    shares = [float(share) for share in np.cumsum(steps) / sum(steps)]
    shares[-1] = 1.0
    bounds = look_bounds(shares, error)
    for number in range(1, len(shares) + 1):
        crossed = 1 - multivariate(shares[:number], list(bounds[:number]))
        assert crossed == pytest.approx(error * spend(shares[number - 1]), abs=2e-5)


def test_one_look_at_everything_is_the_ordinary_interval() -> None:
    assert look_bounds([1.0], 0.025) == pytest.approx([ndtri(0.975)], abs=1e-12)
    assert GroupSequential.at([200], 200).confidence == pytest.approx(0.95, abs=1e-12)


def test_whatever_the_looks_have_to_do_with_each_other_they_seldom_err_together() -> None:
    """The sum of what each look may err on one side is below 5 %, so that estimates that are no normal ones keep it."""
    for least, most in ((20, 25), (20, 100), (40, 400), (20, 1319), (100, 10_000)):
        sizes = planned_looks(least, most)
        tails = [(1 - GroupSequential.at(sizes[: number + 1], most).confidence) / 2 for number in range(len(sizes))]
        assert 0.025 <= sum(tails) < 0.05


@pytest.mark.parametrize("shares", [[], [0.0, 1.0], [0.5, 0.5], [0.5, 1.1], [0.6, 0.5], [math.nan]])
def test_shares_that_are_no_looks_are_refused(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        look_bounds(shares, 0.025)


@pytest.mark.parametrize("error", [0.0, 1.0, -1.0, math.nan])
def test_errors_that_are_no_probability_are_refused(error: float) -> None:
    with pytest.raises(ValueError, match="error"):
        look_bounds([0.5, 1.0], error)


@given(least=st.integers(2, 2000), more=st.integers(0, 20_000))
def test_looks_go_from_the_least_to_the_most(least: int, more: int) -> None:
    sizes = planned_looks(least, least + more)
    assert (sizes[0], sizes[-1]) == (least, least + more)
    assert len(sizes) <= LOOKS
    assert list(sizes) == sorted(set(sizes))
    assert all(b / a >= LEAST_GROWTH - 2 / a for a, b in pairwise(sizes) if len(sizes) > 2)


def test_looks_of_a_suite_of_40_to_400() -> None:
    assert planned_looks(40, 400) == (40, 50, 63, 80, 100, 126, 159, 200, 252, 318, 400)
    assert planned_looks(40, 40) == (40,)
    with pytest.raises(ValueError, match="looks"):
        planned_looks(41, 40)


def test_intervals_of_a_look_are_the_ordinary_ones_at_its_confidence() -> None:
    values = np.random.default_rng(2).normal(size=63)
    at = GroupSequential.at([40, 63], 400)
    found, ordinary = at.mean(values, range(63)), mean_interval(values, range(63), at.confidence, skewed=True)
    assert found is not None
    assert ordinary is not None
    assert (found.low, found.high) == (ordinary.low, ordinary.high)
    assert found.method == (
        "cluster t, 62 degrees of freedom, widened by Hall's transformation and cluster bootstrap-t, at "
        f"{100 * at.confidence:.6g} %: group-sequential, look 2 at 63 of at most "
        "400 documents, all looks together 95 %"
    )
    alone = Intervals().mean(values, range(63))
    assert alone is not None
    assert found.low < alone.low < alone.high < found.high


def test_an_interval_without_width_stays_what_it_is() -> None:
    assert GroupSequential.at([40], 400).add_method(None) is None
    point = Interval(1.0, 1.0, "no interval: all 5 values are exactly equal")
    assert GroupSequential.at([40], 400).add_method(point) is point


def test_documents_without_exception_count_as_documents() -> None:
    """600 tokens of 30 documents that all agree bound a share of documents, not of tokens: 1 − α^(1/30)."""
    at = GroupSequential.at([30, 60], 400)
    found = at.proportion(np.ones(600), np.arange(30).repeat(20))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((((1 - at.confidence) / 2) ** (1 / 30), 1.0))


def test_every_kind_of_interval_is_wider_while_there_are_looks_to_come() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(60), 20)
    values, ones = rng.random(1200), rng.random(1200) < 0.9
    before, after = (rng.random(1200), ones * 1.0), (rng.random(1200), ones * 1.0)
    early, alone = GroupSequential.at([60], 400), Intervals()
    pairs = [
        (early.mean(values, labels), alone.mean(values, labels)),
        (early.mean(values, labels, skewed=True), alone.mean(values, labels, skewed=True)),
        (early.mean(0 * values, labels, largest=0.5), alone.mean(0 * values, labels, largest=0.5)),
        (early.ratio_of_sums(values, values + 1, labels), alone.ratio_of_sums(values, values + 1, labels)),
        (early.proportion(ones, labels), alone.proportion(ones, labels)),
        (early.bounded_mean(values, labels, 0, 1), alone.bounded_mean(values, labels, 0, 1)),
        (early.quantiles(values, labels, [0.5])[0], alone.quantiles(values, labels, [0.5])[0]),
        (
            early.calibration_shift(before, after, labels).interval,
            alone.calibration_shift(before, after, labels).interval,
        ),
    ]
    for wide, narrow in pairs:
        assert wide is not None
        assert narrow is not None
        assert wide.low < narrow.low
        assert narrow.high < wide.high
        assert "group-sequential, look 1 at 60 of at most 400" in wide.method
