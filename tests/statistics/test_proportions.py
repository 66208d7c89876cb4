"""The confidence sequence of a share: by its definition, against the exact interval, and under many looks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from harness.statistics import Betting, GroupSequential, binomial_confidence_sequence, clopper_pearson
from tests.helpers.results import interval


def mixed_likelihood_ratio(successes: int, n: int, share: float) -> float:
    """The integral of the definition, done numerically."""
    weight = stats.beta(0.25, 10)
    mixed = quad(lambda q: q**successes * (1 - q) ** (n - successes) * weight.pdf(q), 0, 1, epsabs=0, limit=200)[0]
    return float(mixed / (share**successes * (1 - share) ** (n - successes)))


@pytest.mark.parametrize(("successes", "n"), [(1, 12), (3, 40), (9, 10), (20, 60)])
def test_its_ends_are_where_the_mixture_has_forty_times_the_likelihood(successes: int, n: int) -> None:
    found = interval(binomial_confidence_sequence(successes, n))
    assert found.low < successes / n < found.high
    for end in (found.low, found.high):
        assert mixed_likelihood_ratio(successes, n, end) == pytest.approx(40, rel=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(0, 2), (0, 83), (5, 5), (1, 1), (0, 10**6), (9, 10)])
def test_at_the_ends_of_the_range_it_has_one_end(successes: int, n: int) -> None:
    found = interval(binomial_confidence_sequence(successes, n))
    assert (found.low == 0) == (successes == 0)
    assert (found.high == 1) == (successes == n)
    assert found.low <= successes / n <= found.high
    assert found.low < found.high


def test_it_costs_few_documents_more_than_a_single_look() -> None:
    """Where none is broken, 5 % are excluded after 83 documents at whatever look; an interval for one look needs 72."""
    assert (
        interval(binomial_confidence_sequence(0, 82)).high > 0.05 > interval(binomial_confidence_sequence(0, 83)).high
    )
    for n in (20, 83, 400):
        for successes in (0, 1, n // 10):
            ever, once = interval(binomial_confidence_sequence(successes, n)), interval(clopper_pearson(successes, n))
            assert ever.low <= once.low + 1e-3
            assert once.high < ever.high


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_it_holds_at_all_of_two_hundred_looks_at_once(share: float) -> None:
    """2000 runs: each side may miss in 2.5 %; with three standard errors that is 3.6 %."""
    generator = np.random.default_rng(4)
    counts = (generator.random((2000, 200)) < share).cumsum(axis=1)
    low = np.array([[interval(binomial_confidence_sequence(k, n)).low for k in range(n + 1)] + [0.0] * (200 - n)
                    for n in range(1, 201, 4)])  # fmt: skip
    high = np.array([[interval(binomial_confidence_sequence(k, n)).high for k in range(n + 1)] + [1.0] * (200 - n)
                     for n in range(1, 201, 4)])  # fmt: skip
    looks = np.arange(0, 200, 4)
    seen = counts[:, looks]
    assert (high[np.arange(50), seen] < share).any(axis=1).mean() <= 0.036
    assert (low[np.arange(50), seen] > share).any(axis=1).mean() <= 0.036


def test_what_cannot_be_counted_is_an_error() -> None:
    assert binomial_confidence_sequence(0, 0) is None
    with pytest.raises(ValueError, match="found"):
        binomial_confidence_sequence(3, 2)


@pytest.mark.parametrize("method", [GroupSequential, Betting])
def test_looks_take_it_for_shares_of_clusters_whatever_was_planned(method: type[GroupSequential]) -> None:
    broken = np.arange(90) < 1
    for seen, most in (([90], 90), ([20, 90], 1000), ([30, 60, 90], 400)):
        found = interval(method.at(seen, most).share_of_clusters(broken))
        assert (found.low, found.high) == (
            interval(binomial_confidence_sequence(1, 90)).low,
            interval(binomial_confidence_sequence(1, 90)).high,
        )
        assert "valid at any look" in found.method
    assert method.at([1], 4).share_of_clusters([False]) is None
