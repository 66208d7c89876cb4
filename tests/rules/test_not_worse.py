from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from harness.rules.not_worse import NotWorse
from tests.helpers.measured import measured


def not_worse(margin: float, **fields: Any) -> NotWorse:
    return NotWorse(metric="m", why="because", margin=margin, **fields)


@pytest.mark.parametrize(
    ("margin", "status"),
    [
        (0.02, "pass"),
        (0.016, "inconclusive"),
        (0.0131, "inconclusive"),
        (0.0102, "inconclusive"),
        (0.01, "fail"),
    ],
)
def test_damage_of_a_ratio(margin: float, status: str) -> None:
    assert not_worse(margin).judge(measured("ratio"), identical=False).status == status


@pytest.mark.parametrize(("margin", "status"), [(0.03, "pass"), (0.02, "inconclusive"), (0.015, "inconclusive")])
def test_damage_of_a_score(margin: float, status: str) -> None:
    assert not_worse(margin).judge(measured("accuracy"), identical=False).status == status


def test_a_clear_drop_fails() -> None:
    drop = measured("accuracy", change=-0.05, low=-0.07, high=-0.03)
    decision = not_worse(0.02).judge(drop, identical=False)
    assert decision.status == "fail"
    assert decision.margin == pytest.approx(-0.01)


def test_improvement_of_any_size_passes() -> None:
    better = measured("accuracy", change=0.3, low=0.2, high=0.4)
    assert not_worse(0.001).judge(better, identical=False).status == "pass"
    assert not_worse(0.001).judge(measured("ratio", change=0.5, low=0.4, high=0.6), identical=False).status == "pass"


def test_not_significantly_worse_is_not_a_pass() -> None:
    unsure = measured("accuracy", change=0.0, low=-0.1, high=0.1)
    assert not_worse(0.02).judge(unsure, identical=False).status == "inconclusive"


def test_sentence() -> None:
    because = not_worse(0.02).judge(measured("ratio"), identical=False).because
    assert because.startswith(
        "perplexity.ratio is 1.0131, 95 % interval [1.0102, 1.016]; "
        "expected: degradation < 0.02 from 1 (allowed: up to 1.02)"
    )
    because = not_worse(0.03).judge(measured("accuracy"), identical=False).because
    assert "expected: degradation < 0.03 from 0 (allowed: down to -0.03)" in because


def test_percent_for_a_share_is_an_error() -> None:
    for kind in ("ratio", "accuracy", "agreement"):
        decision = not_worse(2.0).judge(measured(kind), identical=True)
        assert decision.status == "error"
        assert "the margin 2 means 200 %; write 0.02 if 2 % is meant" in decision.because
    assert not_worse(2.0).judge(measured("perplexity"), identical=False).status == "pass"


@pytest.mark.parametrize("kind", ["gap", "sqnr"])
def test_metrics_without_a_worse_side_or_a_finite_best_are_errors(kind: str) -> None:
    assert not_worse(0.5).judge(measured(kind), identical=True).status == "error"


def test_identity_passes_any_margin() -> None:
    same = measured("ratio", change=1.0, low=1.0, high=1.0)
    assert not_worse(1e-12).judge(same, identical=True).status == "pass"
    assert not_worse(0.5).judge(same, identical=False).status == "inconclusive"
    alone = measured("ratio", change=1.0, low=None, high=None, clusters=1)
    assert not_worse(0.5).judge(alone, identical=True).status == "pass"
    assert not_worse(0.5).judge(alone, identical=False).status == "inconclusive"


def test_a_metric_without_comparison_is_an_error() -> None:
    only = measured("perplexity", change=None, low=None, high=None)
    assert not_worse(0.5).judge(only, identical=True).status == "error"


@pytest.mark.parametrize("margin", [0.0, -0.02, math.nan, math.inf, "1e-2", True])
def test_a_margin_is_a_positive_finite_number(margin: Any) -> None:
    with pytest.raises(ValidationError):
        not_worse(margin)
