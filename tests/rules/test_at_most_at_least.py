from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from tests.helpers.measured import measured


def at_most(limit: float, metric: str = "m", **fields: Any) -> AtMost:
    return AtMost(metric=metric, why="because", limit=limit, **fields)


def at_least(limit: float, metric: str = "m", **fields: Any) -> AtLeast:
    return AtLeast(metric=metric, why="because", limit=limit, **fields)


@pytest.mark.parametrize(
    ("limit", "status", "margin"),
    [
        (1.02, "pass", 0.004),
        (1.016, "inconclusive", 0.0),  # a tie with the upper end
        (1.0131, "inconclusive", -0.0029),
        (1.0102, "inconclusive", -0.0058),  # a tie with the lower end
        (1.01, "fail", -0.0002),
    ],
)
def test_at_most_judges_the_whole_interval(limit: float, status: str, margin: float) -> None:
    decision = at_most(limit).judge(measured("ratio"), identical=False)
    assert decision.status == status
    assert decision.margin == pytest.approx(margin, abs=1e-12)


@pytest.mark.parametrize(
    ("limit", "status", "margin"),
    [(0.9, "pass", 0.04), (0.94, "inconclusive", 0.0), (0.95, "inconclusive", -0.01), (0.97, "fail", -0.01)],
)
def test_at_least_judges_the_whole_interval(limit: float, status: str, margin: float) -> None:
    decision = at_least(limit).judge(measured("agreement"), identical=False)
    assert decision.status == status
    assert decision.margin == pytest.approx(margin, abs=1e-12)


def test_the_variants_own_value_is_judged_where_there_is_one() -> None:
    assert at_least(0.55).judge(measured("accuracy"), identical=False).status == "pass"
    assert at_least(0.58).judge(measured("accuracy"), identical=False).status == "inconclusive"
    assert at_least(0.63).judge(measured("accuracy"), identical=False).status == "fail"
    decision = at_most(11.5).judge(measured("perplexity"), identical=False)
    assert decision.status == "pass"
    assert "perplexity.value of the variant is 10.2, 95 % interval [9, 11]" in decision.because


@pytest.mark.parametrize(("ratio", "status"), [(1.0, "pass"), (1.25, "inconclusive"), (1.6, "fail")])
def test_a_ratio_is_judged_by_itself_though_it_tells_what_it_is_a_ratio_of(ratio: float, status: str) -> None:
    lengths = measured("ratio").model_copy(
        update={"reference": 40.0, "variant": 40.0 * ratio, "change": ratio, "low": ratio - 0.1, "high": ratio + 0.1}
        | {"variant_low": 40.0 * ratio, "variant_high": 40.0 * ratio}
    )
    decision = at_most(1.25).judge(lengths, identical=False)
    assert decision.status == status
    assert f"is {ratio:g}, 95 % interval [{ratio - 0.1:g}, {ratio + 0.1:g}]" in decision.because


@pytest.mark.parametrize(("limit", "status"), [(3.3, "pass"), (3.2, "inconclusive"), (3.1, "fail")])
def test_point_compares_the_number_alone(limit: float, status: str) -> None:
    assert at_most(limit, decide="point").judge(measured("maximum"), identical=False).status == status
    assert at_most(limit).judge(measured("maximum"), identical=False).status == "inconclusive"


def test_without_an_interval_the_way_out_is_named() -> None:
    decision = at_most(100.0).judge(measured("maximum"), identical=False)
    assert decision.status == "inconclusive"
    assert "write decide: point" in decision.because


@pytest.mark.parametrize(("limit", "status"), [(1501.0, "pass"), (1500.0, "pass"), (1499.0, "fail")])
def test_exact_counts_are_simply_compared(limit: float, status: str) -> None:
    decision = at_most(limit).judge(measured("bytes"), identical=False)
    assert decision.status == status
    assert "interval" not in decision.because


def test_an_interval_without_width_is_no_evidence() -> None:
    flat = measured("ratio", change=1.0, low=1.0, high=1.0, method="no interval: all 9 values are exactly equal")
    decision = at_most(1.02).judge(flat, identical=False)
    assert decision.status == "inconclusive"
    assert "all 9 values are exactly equal" in decision.because
    assert at_most(1.02).judge(flat, identical=True).status == "pass"
    assert at_most(1.0).judge(flat, identical=True).status == "pass", "an exact tie of the same bytes"
    assert at_most(0.9).judge(flat, identical=True).status == "fail"


def test_identical_models_do_not_excuse_numbers_that_differ() -> None:
    assert at_most(1.016).judge(measured("ratio"), identical=True).status == "inconclusive"


@pytest.mark.parametrize("limit", [0.1, 0.99])
def test_the_wrong_direction_is_an_error(limit: float) -> None:
    assert at_most(limit).judge(measured("agreement"), identical=True).status == "error"
    assert "write at_least" in at_most(limit).judge(measured("agreement"), identical=True).because
    assert at_least(limit).judge(measured("ratio"), identical=True).status == "error"
    assert "write at_most" in at_least(limit).judge(measured("ratio"), identical=True).because


def test_metrics_without_direction_can_be_bounded_on_both_sides() -> None:
    assert at_most(0.02).judge(measured("gap"), identical=False).status == "pass"
    assert at_least(-0.02).judge(measured("gap"), identical=False).status == "pass"
    assert at_most(0.004).judge(measured("gap"), identical=False).status == "fail"


def test_percent_for_a_share_is_an_error() -> None:
    decision = at_least(90.0).judge(measured("agreement"), identical=False)
    assert decision.status == "error"
    assert "write 0.9 for 90 %" in decision.because
    assert at_most(5.0).judge(measured("gap"), identical=False).status == "error"


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf, "0.02", "1e-2", True, None])
def test_a_limit_is_a_finite_number(limit: Any) -> None:
    for rule in (at_most, at_least):
        with pytest.raises(ValidationError):
            rule(limit)


@pytest.mark.parametrize("fields", [{"decide": "median"}, {"tolerance": 0.1}, {"level": "info"}])
def test_unknown_settings_are_refused(fields: dict[str, Any]) -> None:
    for rule in (at_most, at_least):
        with pytest.raises(ValidationError):
            rule(0.5, **fields)


def test_numbers_in_sentences_are_not_rounded_over_the_limit() -> None:
    decision = at_most(1.02).judge(measured("ratio", high=1.0199999996), identical=False)
    assert decision.status == "pass"
    assert "1.0199999996" in decision.because
    decision = at_most(1.02).judge(measured("ratio", high=1.0200000004), identical=False)
    assert decision.status == "inconclusive"
    assert "1.0200000004" in decision.because
