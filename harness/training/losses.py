"""The two losses that every training reports: cross-entropy, and the divergence from the reference, in nats per token.

Legend: N scored tokens, V logits of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.training.examples import Batch


def mean_nll(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of −log p(target)."""
    return functional.cross_entropy(logits_NV.float(), targets_N)


def mean_kl(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """Mean of KL(teacher ‖ student) = Σ p (log p − log q)."""
    teacher, student = (functional.log_softmax(each.float(), -1) for each in (teacher_NV, student_NV))
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


@torch.no_grad()
def predict(teacher: nn.Module, batch: Batch) -> Tensor:
    """The teacher's logits [N, V] of the scored tokens, without gradients."""
    return batch.logits(teacher)
