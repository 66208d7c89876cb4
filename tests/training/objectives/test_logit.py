"""The objective logit: against its formula in double precision, its limits, padding and prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from harness.training.examples import Batch
from harness.training.objectives import Logit
from tests.helpers.objectives import batch, logits, loss_of, outputs, seen


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
    found = loss_of(objective, seen(of, outputs(of, student), outputs(of, teacher)))
    assert float(found) == pytest.approx(by_definition(of, student, teacher, alpha, temperature), rel=1e-12)


def test_hard_labels_alone_do_not_need_the_teacher() -> None:
    of = batch()
    student, teacher = logits(of, 1), logits(of, 2)
    objective = Logit(alpha=1)
    assert not objective.uses_teacher
    assert not objective.same_tokens
    alone = loss_of(objective, seen(of, outputs(of, student)))
    assert float(alone) == pytest.approx(by_definition(of, student, teacher, 1, 1), rel=1e-12)
    assert Logit(alpha=0.99).uses_teacher
    assert Logit(alpha=0.99).same_tokens


def test_without_hard_labels_the_text_does_not_matter() -> None:
    of, other = batch(vocabulary=12), batch(vocabulary=3)
    student, teacher = logits(of, 1), logits(of, 2)
    losses = [
        loss_of(Logit(alpha=0), seen(each, outputs(each, student), outputs(each, teacher))) for each in (of, other)
    ]
    assert not torch.equal(of.ids, other.ids)
    assert torch.equal(*losses)


def test_padding_and_prompts_are_not_learned() -> None:
    of = batch((7, 4), (1, 3))
    student, teacher = logits(of, 1), logits(of, 2)
    objective = Logit(alpha=0.5)
    before = loss_of(objective, seen(of, outputs(of, student), outputs(of, teacher)))
    changed = student.clone()
    changed[1, :2] += torch.randn(2, 12)  # they predict tokens of the prompt
    changed[1, 3:] += torch.randn(4, 12)  # they predict what follows the end of the text
    changed[0, 6] += torch.randn(12)
    after = loss_of(objective, seen(of, outputs(of, changed), outputs(of, teacher)))
    assert torch.equal(before, after)
    changed[1, 2] += torch.randn(12)
    assert not torch.equal(before, loss_of(objective, seen(of, outputs(of, changed), outputs(of, teacher))))


def test_curves_show_both_terms() -> None:
    of = batch()
    student, teacher = logits(of, 1), logits(of, 2)
    given = seen(of, outputs(of, student), outputs(of, teacher))
    found = Logit(alpha=0.25, temperature=2).terms(given)
    hard, soft = loss_of(Logit(alpha=1), given), loss_of(Logit(temperature=2), given)
    assert found.keys() == {"logit.hard", "logit.soft"}
    torch.testing.assert_close(found["logit.hard"], 0.25 * hard, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["logit.soft"], 0.75 * soft, rtol=1e-12, atol=0)
    assert Logit().terms(given).keys() == {"logit.soft"}


def test_logits_that_belong_to_no_token_are_not_compared() -> None:
    of = batch()
    student, teacher = logits(of, 1), logits(of, 2)
    padded = torch.cat([teacher, torch.full((*teacher.shape[:2], 4), 5.0)], -1)
    objective = Logit()
    plain, wide = (loss_of(objective, seen(of, outputs(of, student), outputs(of, each))) for each in (teacher, padded))
    assert torch.equal(plain, wide)


@pytest.mark.parametrize("field", [{"alpha": 1.5}, {"alpha": -0.1}, {"temperature": 0.0}, {"beta": 0.0}, {"beta": 1.0}])
def test_impossible_settings_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Logit.model_validate(field)
