"""Agreement of two ways of scoring: rounding passes, and nothing else does."""

from __future__ import annotations

import math

import pytest
import torch

from harness.scoring.agreement import explain_likelihoods, is_tie
from harness.scoring.likelihoods import Likelihood


def explain(
    one: float, other: float, dtype: torch.dtype = torch.float32, greedy: tuple[bool, bool] = (True, True)
) -> str:
    return explain_likelihoods([Likelihood(one, greedy[0])], [Likelihood(other, greedy[1])], dtype)


@pytest.mark.parametrize(("one", "other"), [(-3.0, -3.0), (-3.0, -3.00009), (-900.0, -900.0009)])
def test_rounding_agrees(one: float, other: float) -> None:
    assert explain(one, other) == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [(-3.0, -3.00011), (-900.0, -900.0011), (math.nan, math.nan), (-math.inf, -math.inf), (-1, math.nan)],
)
def test_more_than_rounding_and_what_is_not_finite_does_not(one: float, other: float) -> None:
    assert explain(one, other).startswith("1 of 1 log-likelihoods differ in packed rows")


def test_16_bit_dtypes_have_larger_units() -> None:
    assert explain(-20.0, -20.9, torch.bfloat16) == ""
    assert explain(-20.0, -22.0, torch.bfloat16)
    assert explain(-20.0, -20.9, torch.float16)
    assert explain(-1.0, -1.3, torch.bfloat16)


def test_another_greedy_continuation_is_a_disagreement_in_full_precision() -> None:
    assert explain(-3.0, -3.0, greedy=(True, False)) == "1 of 1 greedy continuations are others in packed rows"
    assert explain(-3.0, -3.0, torch.bfloat16, greedy=(True, False)) == ""


def test_ties_are_those_of_rounding() -> None:
    logits = torch.tensor([5.0, 5.0 + 1e-5, 5.1, -4.0])
    assert is_tie(logits, 0, 1)
    assert not is_tie(logits, 0, 2)
    assert is_tie(logits.bfloat16(), 0, 2)
    assert not is_tie(logits.bfloat16(), 2, 3)
    assert not is_tie(torch.tensor([math.nan, 1.0]), 0, 1)
