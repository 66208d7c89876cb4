from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from harness.rules.retains import Retains
from tests.helpers.measured import measured


def retains(share: float, **fields: Any) -> Retains:
    return Retains(metric="m", why="because", share=share, **fields)


@pytest.mark.parametrize(("share", "status"), [(0.9, "pass"), (0.98, "inconclusive"), (0.999, "inconclusive")])
def test_share_of_a_score(share: float, status: str) -> None:
    decision = retains(share).judge(measured("accuracy"), identical=False)
    assert decision.status == status
    assert "0.59 / 0.6" in decision.because
    assert "is 0.98333" in decision.because


def test_a_lost_share_fails() -> None:
    drop = measured("accuracy", variant=0.3, change=-0.3, low=-0.33, high=-0.27, variant_low=0.27, variant_high=0.33)
    assert retains(0.95).judge(drop, identical=False).status == "fail"


@pytest.mark.parametrize(("share", "status"), [(0.9, "pass"), (0.98, "inconclusive"), (0.995, "fail")])
def test_lower_is_better_may_grow_by_the_inverse(share: float, status: str) -> None:
    tight = {"low": 0.19, "high": 0.21, "variant_low": 10.1, "variant_high": 10.3}
    decision = retains(share).judge(measured("perplexity", **tight), identical=False)
    assert decision.status == status


@pytest.mark.parametrize("decide", ["point"])
def test_point(decide: str) -> None:
    assert retains(0.98, decide=decide).judge(measured("accuracy"), identical=False).status == "pass"
    assert retains(0.99, decide=decide).judge(measured("accuracy"), identical=False).status == "fail"
    assert retains(0.98, decide=decide).judge(measured("perplexity"), identical=False).status == "pass"
    assert retains(0.99, decide=decide).judge(measured("perplexity"), identical=False).status == "fail"


def test_ratios_and_agreement_are_shares_already() -> None:
    assert retains(0.97).judge(measured("ratio"), identical=False).status == "pass"  # 1/0.97 = 1.031
    assert retains(0.995).judge(measured("ratio"), identical=False).status == "fail"
    assert retains(0.9).judge(measured("agreement"), identical=False).status == "pass"
    assert retains(0.97).judge(measured("agreement"), identical=False).status == "fail"


def test_exact_counts() -> None:
    assert retains(1.0).judge(measured("bytes"), identical=False).status == "pass"
    more = measured("bytes", variant=4001.0, change=1.0, low=1.0, high=1.0, variant_low=None, variant_high=None)
    assert retains(1.0).judge(more, identical=False).status == "fail"


def test_identity_retains_everything() -> None:
    same = measured("accuracy", variant=0.6, change=0.0, low=-0.03, high=0.03)
    assert retains(1.0).judge(same, identical=True).status == "pass"
    assert retains(1.0).judge(same, identical=False).status == "inconclusive"


def test_no_spread_is_no_evidence() -> None:
    flat = measured("accuracy", variant=0.6, change=0.0, low=0.0, high=0.0)
    assert retains(0.5).judge(flat, identical=False).status == "inconclusive"


def test_what_has_no_share_is_an_error() -> None:
    assert retains(0.9).judge(measured("gap"), identical=True).status == "error"
    assert retains(0.9).judge(measured("maximum"), identical=True).status == "error"
    zero = measured(
        "accuracy",
        reference=0.0,
        variant=0.0,
        change=0.0,
        low=-0.1,
        high=0.1,
        variant_low=0,
        variant_high=0.1,
    )
    decision = retains(0.9).judge(zero, identical=True)
    assert decision.status == "error"
    assert "has no meaning" in decision.because


def test_without_an_interval_of_the_variant_nothing_is_decided() -> None:
    bare = measured("accuracy", variant_low=None, variant_high=None)
    assert retains(0.5).judge(bare, identical=False).status == "inconclusive"


@pytest.mark.parametrize("share", [0.0, 1.0001, 98.0, -1.0, math.nan, "0.98", True])
def test_a_share_lies_between_zero_and_one(share: Any) -> None:
    with pytest.raises(ValidationError):
        retains(share)


def test_a_loss_at_the_limit_seldom_passes() -> None:
    """Simulated: the variant keeps exactly the share that is asked for; 2.5 % of runs may pass."""
    generator = np.random.default_rng(6)
    passed = 0
    for _ in range(2000):
        reference = generator.random(400) < 0.6
        variant = np.where(generator.random(400) < 0.03, ~reference, reference)
        true_share = (0.6 * 0.97 + 0.4 * 0.03) / 0.6
        change = variant.astype(float) - reference
        errors = [1.96 * x.std(ddof=1) / 20 for x in (change, variant.astype(float))]
        entry = measured(
            "accuracy",
            reference=float(reference.mean()),
            variant=float(variant.mean()),
            change=float(change.mean()),
            low=float(change.mean() - errors[0]),
            high=float(change.mean() + errors[0]),
            variant_low=float(variant.mean() - errors[1]),
            variant_high=float(variant.mean() + errors[1]),
        )
        passed += retains(true_share).judge(entry, identical=False).status == "pass"
    assert passed / 2000 <= 0.03
