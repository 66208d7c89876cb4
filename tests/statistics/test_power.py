"""Power against statsmodels, exact enumeration and simulation; and that it never falls where it must not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import NormalIndPower, TTestPower

from harness.statistics import clopper_pearson, mean_interval, tango_interval
from harness.statistics.power import closest_limit, documents_needed, mean_power, paired_power, share_power
from tests.helpers.paired_plan import draw, plan

FEW = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("documents", [3, 10, 50, 200, 1319])
@pytest.mark.parametrize("effect", [0.05, 0.2, 1.0])
def test_power_of_a_mean_is_that_of_statsmodels(documents: int, effect: float) -> None:
    expected = TTestPower().power(effect, documents, 0.025, alternative="larger")
    assert mean_power(effect * 3.0, 3.0, documents) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("effect", [0.03, 0.1, 0.5])
def test_documents_for_a_mean_are_those_of_statsmodels(effect: float) -> None:
    expected = TTestPower().solve_power(effect, None, 0.025, 0.8, alternative="larger")
    needed = documents_needed(lambda n: mean_power(effect, 1.0, n))
    assert needed == math.ceil(expected) or abs((needed or 0) - expected) < 2


def test_many_documents_join_the_noncentral_t_smoothly() -> None:
    assert mean_power(0.028, 1.0, 10_001) == pytest.approx(mean_power(0.028, 1.0, 10_000), abs=2e-4)
    assert mean_power(1.0, 1.0, 10**7) == 1.0
    assert mean_power(-1.0, 1.0, 10**7) == 0.0


def test_power_of_a_mean_is_how_often_the_harness_passes() -> None:
    rng = np.random.default_rng(5)
    documents, deviation, margin = 40, 0.02, 0.009
    passed = 0
    for _ in range(800):
        values = rng.normal(0.0, deviation, documents)
        interval = mean_interval(values, np.arange(documents))
        passed += interval is not None and interval.high < margin
    assert passed / 800 == pytest.approx(mean_power(margin, deviation, documents), abs=0.05)


def exact_paired_power(margin: float, discordance: float, documents: int) -> float:
    """Every number of lost and gained items, with its probability: how often Tango's upper end is below the margin."""
    total = 0.0
    for k in range(documents + 1):
        weight = stats.binom.pmf(k, documents, discordance)
        if weight < 1e-7:
            continue
        for lost in range(k + 1):
            interval = tango_interval(lost, k - lost, documents)
            assert interval is not None
            if interval.high >= margin:
                break
            total += weight * stats.binom.pmf(lost, k, 0.5)
    return float(total)


@pytest.mark.parametrize(
    ("margin", "discordance", "documents"), [(0.03, 0.02, 200), (0.03, 0.05, 400), (0.1, 0.05, 60), (0.05, 0.1, 250)]
)
def test_power_of_a_paired_difference_is_near_the_exact_one(margin: float, discordance: float, documents: int) -> None:
    exact = exact_paired_power(margin, discordance, documents)
    assert exact - 0.1 <= paired_power(margin, discordance, documents) <= exact + 0.03


def test_without_discordance_the_documents_are_those_at_which_the_interval_of_no_change_passes() -> None:
    needed = documents_needed(lambda n: paired_power(0.03, 0.0, n))
    assert needed is not None
    inside, outside = tango_interval(0, 0, needed), tango_interval(0, 0, needed - 1)
    assert inside is not None
    assert outside is not None
    assert inside.high < 0.03 <= outside.high


def exact_share_power(limit: float, share: float, documents: int) -> float:
    total = 0.0
    for k in range(documents + 1):
        interval = clopper_pearson(k, documents)
        assert interval is not None
        total += stats.binom.pmf(k, documents, share) if interval.high < limit else 0.0
    return float(total)


@pytest.mark.parametrize("documents", [10, 37, 120, 187, 300])
def test_power_of_an_exact_share_is_the_least_until_the_next_step(documents: int) -> None:
    exact = [exact_share_power(0.05, 0.02, n) for n in range(documents, documents + 60)]
    first_rise = next(i for i in range(1, len(exact)) if exact[i] > exact[i - 1]) if exact[0] else 1
    assert share_power(0.05, 0.02, documents) == pytest.approx(exact[first_rise - 1] if exact[0] else 0.0, abs=1e-9)


def test_a_share_of_zero_needs_the_documents_of_the_exact_bound() -> None:
    needed = documents_needed(lambda n: share_power(0.05, 0.0, n))
    assert needed == math.ceil(math.log(0.025) / math.log(0.95))


@FEW
@given(st.floats(0.001, 3), st.floats(0.001, 2), st.integers(2, 20_000), st.integers(1, 5_000), st.floats(0, 1))
def test_a_mean_gains_power_with_documents_and_margin(
    distance: float, deviation: float, documents: int, more: int, looser: float
) -> None:
    power = mean_power(distance, deviation, documents)
    assert mean_power(distance, deviation, documents + more) >= power - 1e-4
    assert mean_power(distance + looser, deviation, documents) >= power - 1e-9


@FEW
@given(st.floats(0.002, 0.4), st.floats(0, 0.5), st.integers(1, 20_000), st.integers(1, 5_000), st.floats(0, 0.4))
def test_a_paired_difference_gains_power_with_documents_and_margin(
    margin: float, discordance: float, documents: int, more: int, looser: float
) -> None:
    power = paired_power(margin, discordance, documents)
    assert paired_power(margin, discordance, documents + more) >= power - 1e-12
    if power >= 0.5:  # below, the normal approximation has no meaning at a handful of items
        assert paired_power(margin + looser, discordance, documents) >= power - 1e-9


@FEW
@given(st.floats(0.01, 0.5), st.floats(0, 0.9), st.integers(1, 3_000), st.integers(1, 1_000))
def test_a_share_gains_power_with_documents(limit: float, part: float, documents: int, more: int) -> None:
    share = limit * part
    assert share_power(limit, share, documents + more) >= share_power(limit, share, documents) - 1e-9


@FEW
@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(2, 2_000))
def test_the_closest_limit_has_the_power_and_no_closer_one(deviation: float, widest: float, documents: int) -> None:
    def power(distance: float) -> float:
        return mean_power(distance, deviation, documents)

    found = closest_limit(power, widest)
    if found is None:
        assert power(widest) < 0.8
    else:
        assert power(found) >= 0.8
        assert found == 0 or power(found * 0.999) < 0.8


@pytest.mark.parametrize("call", [lambda: mean_power(1, -1, 5), lambda: mean_power(1, 1, -5)])
def test_impossible_numbers_are_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match="power: found"):
        call()
    with pytest.raises(ValueError, match="expected shares"):
        paired_power(0.03, 0.05, 100, drop=0.2)
    with pytest.raises(ValueError, match="expected shares"):
        share_power(1.2, 0.1, 100)


# Beside the unpaired z-test


def test_the_unpaired_plan_is_that_of_statsmodels() -> None:
    effect = 0.01 / math.sqrt(0.7 * 0.3)
    wanted = NormalIndPower().solve_power(effect, None, 0.025, 0.8, ratio=1, alternative="larger")
    assert plan(0.01, 0.05, 0.7).planned == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("accuracy", [0.16, 0.26, 0.28, 0.5, 0.7, 0.72, 0.84])
def test_pairing_needs_at_most_a_fifth_of_the_items(accuracy: float) -> None:
    """At 5 % discordance and a margin of one point; where nearly all answers are right, all of them vary less."""
    found = plan(0.01, 0.05, accuracy)
    assert found.paired <= found.planned / 5
    assert (found.paired <= found.unpaired / 5) == (0.27 < accuracy < 0.73)
    assert plan(0.01, 0.05, 0.95).planned < 5 * plan(0.01, 0.05, 0.95).paired, "a claim for all of them would be false"


def test_the_items_of_the_paired_plan_are_enough_and_safe_and_too_few_for_the_unpaired_test() -> None:
    found = plan(0.01, 0.05, 0.7)
    drawn = draw(found, found.paired, 400)
    assert drawn.paired == pytest.approx(0.8, abs=0.06)
    assert drawn.unpaired < 0.05
    assert drawn.paired_at_margin <= 0.05
    assert draw(found, found.unpaired, 200).unpaired == pytest.approx(0.8, abs=0.09)
