"""The objective preference: against the formula of direct preference optimization."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor

from harness.training.examples import Batch
from harness.training.objectives import Preference
from harness.training.objectives.preference import preference_loss
from tests.helpers.objectives import batch, logits, loss_of, outputs, seen


def likelihood(of: Batch, given: Tensor, row: int) -> float:
    """Log-likelihood of the scored tokens of one text."""
    places = [place for place, one in enumerate(of.scored[row].tolist()) if one]
    return sum(float(log_softmax(given[row, p - 1].numpy())[int(of.ids[row, p])]) for p in places)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_loss_is_its_formula(beta: float) -> None:
    of = batch((7, 4, 5, 6), (3, 3, 2, 2))
    policy, start = logits(of, 1), logits(of, 2)
    before = torch.tensor([likelihood(of, start, row) for row in range(4)], dtype=torch.float64)
    wanted = 0.0
    for preferred, other in ((0, 1), (2, 3)):
        gained = [likelihood(of, policy, row) - likelihood(of, start, row) for row in (preferred, other)]
        wanted += -math.log(1 / (1 + math.exp(-beta * (gained[0] - gained[1])))) / 2
    found = loss_of(Preference(beta=beta), seen(of, outputs(of, policy), before=before))
    assert float(found) == pytest.approx(wanted, rel=1e-12)


def test_a_student_as_it_began_prefers_nothing() -> None:
    of = batch((7, 4), (1, 1))
    start = logits(of, 2)
    before = torch.tensor([likelihood(of, start, row) for row in range(2)], dtype=torch.float64)
    found = loss_of(Preference(), seen(of, outputs(of, start), before=before))
    assert float(found) == pytest.approx(math.log(2), rel=1e-12)


def test_the_loss_falls_as_the_preferred_text_gains() -> None:
    of = batch((7, 7), (1, 1))
    start = logits(of, 2)
    before = torch.tensor([likelihood(of, start, row) for row in range(2)], dtype=torch.float64)
    changed = start.clone().requires_grad_(True)
    objective = Preference(beta=0.5)
    loss = loss_of(objective, seen(of, outputs(of, changed), before=before))
    (slope,) = torch.autograd.grad(loss, changed)
    better = (changed - slope).detach()
    assert likelihood(of, better, 0) > likelihood(of, start, 0)
    assert likelihood(of, better, 1) < likelihood(of, start, 1)
    after = loss_of(objective, seen(of, outputs(of, better), before=before))
    assert float(after) < math.log(2)


@settings(max_examples=50, deadline=None)
@given(first=st.floats(-500, 500), second=st.floats(-500, 500), beta=st.floats(0.01, 2))
def test_exchanged_texts_differ_by_the_margin(first: float, second: float, beta: float) -> None:
    # −log σ(−x) = −log σ(x) + x: what makes large margins of the wrong sign cost their size and not infinity.
    own, other = torch.tensor([first], dtype=torch.float64), torch.tensor([second], dtype=torch.float64)
    there, back = preference_loss(own, other, beta), preference_loss(other, own, beta)
    torch.testing.assert_close(back, there + beta * (own - other), rtol=1e-9, atol=1e-9)


def test_likelihoods_from_before_training_are_needed() -> None:
    of = batch()
    with pytest.raises(ValueError, match="before training"):
        Preference().terms(seen(of, outputs(of, logits(of, 1))))
