"""Scales: places within the drawing, and ticks at round numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.report.drawing.scales import Scale, fit_log_scale, fit_scale

WIDE = st.floats(-1e300, 1e300)


@given(WIDE, WIDE, WIDE)
def test_places_lie_within_and_keep_order(one: float, other: float, third: float) -> None:
    scale = fit_scale([one, other, third])
    places = [scale(value) for value in sorted([one, other, third])]
    assert all(0 <= place <= 1 for place in places)
    assert places == sorted(places)


@given(st.floats(1e-12, 1e12), st.floats(1.01, 1e12))
def test_logarithmic_places_are_by_ratio(low: float, factor: float) -> None:
    scale = Scale(low, low * factor, log=True)
    assert scale(low) == 0
    assert scale(low * factor) == 1
    assert scale(low * math.sqrt(factor)) == pytest.approx(0.5, abs=1e-6)
    assert scale(0.0) == 0


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 9))
def test_ticks_are_few_and_within(low: float, width: float, about: int) -> None:
    assume(width > abs(low) * 1e-6)
    scale = Scale(low, low + width)
    ticks = scale.ticks(about)
    assert len(ticks) <= about + 1
    assert all(low - width * 1e-6 <= tick <= low + width * (1 + 1e-6) for tick in ticks)
    assert ticks == sorted(set(ticks))


def test_ticks_are_round() -> None:
    assert Scale(0, 1).ticks(5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert Scale(0.97, 1.11).ticks(4) == [1.0, 1.05, 1.1]
    assert Scale(1e-5, 10, log=True).ticks(9) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10])
    assert Scale(1.8, 150, log=True).ticks() == [2, 5, 10, 20, 50, 100]


def test_a_scale_covers_what_is_finite() -> None:
    scale = fit_scale([1.0, math.nan, math.inf, 3.0], zero=True)
    assert scale.low == 0
    assert 3.0 < scale.high < 3.5
    assert fit_scale([]) == Scale(0.0, 1.0)
    assert fit_scale([2.0])(2.0) == pytest.approx(0.5)


def test_a_scale_by_logarithms_is_offered_where_values_lie_far_apart() -> None:
    assert fit_log_scale([1.0, 20.0]) is None
    assert fit_log_scale([0.0, 0.0]) is None
    found = fit_log_scale([0.0, 1.0, 21.0, math.inf])
    assert found is not None
    assert found.log
    assert found(0.0) == 0.0 < found(1.0) < found(21.0) < 1.0
