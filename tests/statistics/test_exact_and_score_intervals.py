"""Exact and score intervals of proportions at the edges of their range, and beside definitions written down again."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from scipy import optimize, stats

from harness.statistics.proportions import clopper_pearson, mcnemar_p, tango_interval, tango_score, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(0.0, 7.5), (0.4, 7.5), (3.2, 9.7), (7.5, 7.5), (1, 1), (0, 1), (5, 40)])
@pytest.mark.parametrize("confidence", [0.6, 0.95])
def test_exact_ends_are_quantiles_of_beta(successes: float, n: float, confidence: float) -> None:
    found = clopper_pearson(successes, n, confidence)
    assert found is not None
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, successes, n - successes + 1) if successes else 0.0
    high = stats.beta.isf(tail, successes + 1, n - successes) if successes < n else 1.0
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 9), (0.5, 9), (1, 1), (4, 9), (8.5, 9), (9, 9), (3, 1000)])
@pytest.mark.parametrize("confidence", [0.6, 0.95])
def test_score_ends_solve_their_equation(successes: float, n: float, confidence: float) -> None:
    """Wilson: (p̂ − p)² = z² p (1 − p) / n, a quadratic in p."""
    found = wilson_interval(successes, n, confidence)
    assert found is not None
    z2, share = stats.norm.ppf((1 + confidence) / 2) ** 2, successes / n
    a, b, c = 1 + z2 / n, -(2 * share + z2 / n), share**2
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    assert (found.low, found.high) == pytest.approx(((-b - root) / (2 * a), (-b + root) / (2 * a)), abs=1e-12)
    if successes == 0:
        assert found.low == 0.0
    if successes == n:
        assert found.high == 1.0


def test_all_or_nothing_has_an_open_side() -> None:
    for interval in (clopper_pearson, wilson_interval):
        none, every = interval(0, 5), interval(5, 5)
        assert none is not None
        assert every is not None
        assert (none.low, every.high) == (0.0, 1.0)
        assert 0 < none.high < 1
        assert 0 < every.low < 1
        one = interval(1, 1)
        assert one is not None
        assert one.high == 1.0
        assert interval(0, 0) is None


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (-0.5, 0), (1, 0)])
def test_more_than_all_and_less_than_none_are_refused(successes: float, n: float) -> None:
    for interval in (clopper_pearson, wilson_interval):
        with pytest.raises(ValueError, match=r"expected 0 <= successes <= n"):
            interval(successes, n)


@pytest.mark.parametrize(("b", "c", "n"), [(-1, 0, 3), (0, -1, 3), (2, 2, 3), (1, 0, 0)])
def test_impossible_pairs_are_refused(b: int, c: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"expected b, c >= 0 and b \+ c <= n"):
        tango_interval(b, c, n)


def score_by_likelihood(b: int, c: int, n: int, difference: float) -> float:
    """(b − c − n δ) over its standard deviation, at the probabilities that are most likely where they differ by δ."""

    def loss(second: float) -> float:
        cells = ((b, second + difference), (c, second), (n - b - c, 1 - difference - 2 * second))
        return -sum(count * math.log(share) for count, share in cells if count)

    least, most = max(0.0, -difference), (1 - difference) / 2
    width = most - least
    likely = optimize.minimize_scalar(
        loss, bounds=(least + 1e-13 * width, most - 1e-13 * width), method="bounded", options={"xatol": 1e-14}
    ).x
    return (b - c - n * difference) / math.sqrt(n * (2 * likely + difference * (1 - difference)))


@pytest.mark.parametrize(
    ("b", "c", "n"), [(9, 3, 60), (3, 9, 60), (20, 20, 41), (1, 1, 2), (5, 2, 7), (30, 1, 40), (2, 25, 40)]
)
@pytest.mark.parametrize("difference", [-0.9, -0.3, -0.02, 0.03, 0.25, 0.8])
def test_the_score_is_that_of_the_most_likely_discordance(b: int, c: int, n: int, difference: float) -> None:
    assert tango_score(b, c, n, difference) == pytest.approx(score_by_likelihood(b, c, n, difference), rel=1e-5)


@pytest.mark.parametrize("difference", [-0.9, -0.25, 0.0, 0.25, 0.9])
@pytest.mark.parametrize(("b", "c", "n"), [(9, 3, 60), (0, 5, 8), (20, 20, 41), (0, 0, 9)])
def test_the_score_of_the_sides_exchanged_has_the_other_sign(b: int, c: int, n: int, difference: float) -> None:
    assert tango_score(b, c, n, difference) == pytest.approx(-tango_score(c, b, n, -difference), rel=1e-9, abs=1e-12)


def test_a_hypothesis_that_leaves_no_chance_is_met_or_infinitely_far_off() -> None:
    assert tango_score(0, 0, 10, 0.0) == 0.0
    assert tango_score(10, 0, 10, 1.0) == 0.0
    assert tango_score(3, 1, 10, 1.0) == -math.inf
    assert tango_score(3, 1, 10, -1.0) == math.inf


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 20), (9, 3, 60), (3, 9, 60), (40, 0, 40), (0, 7, 7), (20, 20, 40)])
@pytest.mark.parametrize("confidence", [0.6, 0.95])
def test_ends_of_the_paired_difference_are_where_the_score_is_the_quantile(
    b: int, c: int, n: int, confidence: float
) -> None:
    """The ends are neighbours of the float at which the score passes the quantile."""
    found = tango_interval(b, c, n, confidence)
    assert found is not None
    z = float(stats.norm.ppf((1 + confidence) / 2))
    for first, second, end in ((b, c, found.high), (c, b, -found.low)):
        assert end >= (first - second) / n
        if end < 1:
            assert tango_score(first, second, n, end) == pytest.approx(-z, abs=1e-6)
    if b == n:
        assert found.high == 1.0
    assert tango_interval(0, 0, 0) is None


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 1), (2, 1), (3, 9), (9, 3), (20, 20), (0, 12)])
def test_mcnemar_sums_the_binomial_tail(b: int, c: int) -> None:
    n = b + c
    tail = sum((Fraction(math.comb(n, k), 2**n) for k in range(min(b, c) + 1)), Fraction(0))
    assert mcnemar_p(b, c) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-12)


@pytest.mark.parametrize(("b", "c"), [(-1, 2), (2, -1)])
def test_mcnemar_counts_nothing_below_zero(b: int, c: int) -> None:
    with pytest.raises(ValueError, match="expected b, c >= 0"):
        mcnemar_p(b, c)
