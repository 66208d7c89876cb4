"""Objectives on generated texts: sequence, traces and on_policy learn the tokens after the prompt alone."""

from __future__ import annotations

import pytest
import torch

from harness.training.objectives import Logit, Objective, OnPolicy, Sequence, Traces
from tests.helpers.objectives import batch, logits, loss_of, outputs, seen


@pytest.mark.parametrize("objective", [Sequence(), Traces(task="sums")])
def test_labels_are_the_generated_tokens(objective: Objective) -> None:
    of = batch((8, 6), (5, 2))
    student = logits(of, 1)
    labels = loss_of(Logit(alpha=1), seen(of, outputs(of, student)))
    assert torch.equal(loss_of(objective, seen(of, outputs(of, student))), labels)
    assert not objective.uses_teacher
    assert not objective.same_tokens


@pytest.mark.parametrize(
    ("settings", "like"),
    [
        ({}, Logit(divergence="reverse")),
        ({"divergence": "forward"}, Logit()),
        ({"divergence": "jensen_shannon", "beta": 0.2}, Logit(divergence="jensen_shannon", beta=0.2)),
    ],
)
def test_own_texts_are_compared_with_the_teacher(settings: dict[str, object], like: Logit) -> None:
    of = batch((8, 6), (5, 2))
    student, teacher = outputs(of, logits(of, 1)), outputs(of, logits(of, 2))
    objective = OnPolicy.model_validate(settings)
    given = seen(of, student, teacher)
    assert torch.equal(loss_of(objective, given), loss_of(like, given))
    assert objective.same_tokens
    with pytest.raises(ValueError, match="teacher"):
        objective.terms(seen(of, student))
