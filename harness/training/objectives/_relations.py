"""How the representations of two models are compared: hidden states through a projection, relations of tokens.

Legend: B texts, T positions, N scored tokens, D and F hidden sizes, H heads, E size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.training.examples import Batch
from harness.training.objectives._outputs import AttentionInputs

_NEVER = -1e9
"""Score of a later token, whose probability is 0 in any precision."""


def pair_evenly(students: int, teachers: int) -> list[tuple[int, int]]:
    """For each block of a student that of the teacher which ends at the same share of the depth, rounded up; the last
    is paired with the last."""
    return [(block, -(-(block + 1) * teachers // students) - 1) for block in range(students)]


def hidden_loss(student_ND: Tensor, teacher_NF: Tensor, projection_FD: Tensor) -> Tensor:
    """Mean squared error of projected states over tokens and channels, each channel in units of its own variance.

    So a few channels of large values do not decide alone, and predicting the mean of each channel gives 1. Channels
    that do not vary are left out.
    """
    taught_NF = teacher_NF.detach().float()
    error_NF = student_ND.float() @ projection_FD.T - taught_NF
    variance_F = taught_NF.var(0, unbiased=False)
    varies_F = variance_F > 0
    return (error_NF.square().mean(0)[varies_F] / variance_F[varies_F]).mean()


def attention_loss(student: AttentionInputs, teacher: AttentionInputs, batch: Batch) -> Tensor:
    """Mean over heads and tokens of KL(teacher‖student) of attention probabilities (Wang et al. 2020), in nats.

    Both need as many heads.
    """
    own, other = (
        _relate(each.query, _spread(each.key, each.query.shape[1]), each.scale) for each in (student, teacher)
    )
    return _compare(own, other.detach(), batch)


def value_loss(student: AttentionInputs, teacher: AttentionInputs, heads: int, batch: Batch) -> Tensor:
    """Mean over relation heads and tokens of KL(teacher‖student) of value relations softmax(V·Vᵀ/√E), in nats.

    The values of all heads are joined and split into ``heads`` of E channels each (Wang et al. 2021), so that models
    with other heads can be compared. A token is related to those before it and itself.
    """
    relations = []
    for each in (student, teacher):
        value_BTX = each.value.transpose(1, 2).flatten(2)
        value_BHTE = value_BTX.unflatten(2, (heads, -1)).transpose(1, 2)
        relations.append(_relate(value_BHTE, value_BHTE, value_BHTE.shape[-1] ** -0.5))
    return _compare(relations[0], relations[1].detach(), batch)


def _relate(query_BHTE: Tensor, key_BHTE: Tensor, scale: float) -> Tensor:
    """Log-probabilities [B, H, T, T] of the tokens to which each token attends."""
    scores_BHTT = query_BHTE.float() @ key_BHTE.float().transpose(2, 3) * scale
    tokens = scores_BHTT.shape[-1]
    later_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=scores_BHTT.device).triu(1)
    return scores_BHTT.masked_fill(later_TT, _NEVER).log_softmax(-1)


def _spread(key_BHTE: Tensor, heads: int) -> Tensor:
    """Keys for every query head, where several share one."""
    return key_BHTE.repeat_interleave(heads // key_BHTE.shape[1], 1)


def _compare(student_BHTT: Tensor, teacher_BHTT: Tensor, batch: Batch) -> Tensor:
    entropy_BHT = (teacher_BHTT.exp() * (teacher_BHTT - student_BHTT)).sum(-1)
    return batch.select(entropy_BHT.transpose(1, 2)).mean()
