"""The objective logit: against its formula in double precision, its limits, padding and prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from harness.training.examples import Batch
from harness.training.objectives import Logit
from tests.helpers.objectives import batch, logits, outputs, seen


def by_definition(of: Batch, student: Tensor, teacher: Tensor, alpha: float, temperature: float) -> float:
    """α·CE + (1 − α)·τ²·KL, token by token in plain Python."""
    hard, soft, count = 0.0, 0.0, 0
    for row, scored in enumerate(of.scored.tolist()):
        for place in [index for index, one in enumerate(scored) if one]:
            own, taught = (each[row, place - 1].numpy() for each in (student, teacher))
            hard -= log_softmax(own)[int(of.ids[row, place])]
            p, q = log_softmax(taught / temperature), log_softmax(own / temperature)
            soft += float((np.exp(p) * (p - q)).sum())
            count += 1
    return (alpha * hard + (1 - alpha) * temperature**2 * soft) / count


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_its_formula(alpha: float, temperature: float) -> None:
    of = batch((7, 4, 5), (1, 1, 3))
    student, teacher = logits(of, 1), logits(of, 2)
    objective = Logit(alpha=alpha, temperature=temperature)
    found = objective.losses(seen(of, outputs(of, student), outputs(of, teacher)))["loss"]
    assert float(found) == pytest.approx(by_definition(of, student, teacher, alpha, temperature), rel=1e-12)


def test_hard_labels_alone_do_not_need_the_teacher() -> None:
    of = batch()
    student, teacher = logits(of, 1), logits(of, 2)
    objective = Logit(alpha=1)
    assert not objective.uses_teacher
    assert not objective.same_tokens
    alone = objective.losses(seen(of, outputs(of, student)))["loss"]
    assert float(alone) == pytest.approx(by_definition(of, student, teacher, 1, 1), rel=1e-12)
    assert Logit(alpha=0.99).uses_teacher
    assert Logit(alpha=0.99).same_tokens


def test_without_hard_labels_the_text_does_not_matter() -> None:
    of, other = batch(vocabulary=12), batch(vocabulary=3)
    student, teacher = logits(of, 1), logits(of, 2)
    losses = [
        Logit(alpha=0).losses(seen(each, outputs(each, student), outputs(each, teacher)))["loss"]
        for each in (of, other)
    ]
    assert not torch.equal(of.ids, other.ids)
    assert torch.equal(*losses)


def test_padding_and_prompts_are_not_learned() -> None:
    of = batch((7, 4), (1, 3))
    student, teacher = logits(of, 1), logits(of, 2)
    objective = Logit(alpha=0.5)
    before = objective.losses(seen(of, outputs(of, student), outputs(of, teacher)))["loss"]
    changed = student.clone()
    changed[1, :2] += torch.randn(2, 12)  # they predict tokens of the prompt
    changed[1, 3:] += torch.randn(4, 12)  # they predict what follows the end of the text
    changed[0, 6] += torch.randn(12)
    after = objective.losses(seen(of, outputs(of, changed), outputs(of, teacher)))["loss"]
    assert torch.equal(before, after)
    changed[1, 2] += torch.randn(12)
    assert not torch.equal(before, objective.losses(seen(of, outputs(of, changed), outputs(of, teacher)))["loss"])


def test_curves_show_both_terms() -> None:
    of = batch()
    student, teacher = logits(of, 1), logits(of, 2)
    objective = Logit(alpha=0.25, temperature=2)
    found = objective.losses(seen(of, outputs(of, student), outputs(of, teacher)))
    mixed = 0.25 * found["cross_entropy"] + 0.75 * 4 * found["divergence"]
    torch.testing.assert_close(found["loss"], mixed, rtol=1e-12, atol=0)


def test_logits_that_belong_to_no_token_are_not_compared() -> None:
    of = batch()
    student, teacher = logits(of, 1), logits(of, 2)
    padded = torch.cat([teacher, torch.full((*teacher.shape[:2], 4), 5.0)], -1)
    objective = Logit()
    plain, wide = (
        objective.losses(seen(of, outputs(of, student), outputs(of, each)))["loss"] for each in (teacher, padded)
    )
    assert torch.equal(plain, wide)


@pytest.mark.parametrize("field", [{"alpha": 1.5}, {"alpha": -0.1}, {"temperature": 0.0}, {"beta": 0.0}, {"beta": 1.0}])
def test_impossible_settings_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Logit.model_validate(field)
