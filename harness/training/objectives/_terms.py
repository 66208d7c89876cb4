"""What several objectives compute from the outputs of student and teacher on a batch.

Legend: B texts, N scored positions, n rows of a chunk, V vocabulary, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.training.examples import Batch
from harness.training.objectives._outputs import Outputs
from harness.training.objectives._rows import Divergence, divergence, hard_label_loss, map_rows


def cross_entropy(student: Outputs, batch: Batch) -> Tensor:
    """Cross-entropy [N] of the learned tokens in nats."""
    found_N1 = map_rows(
        lambda states_nD, targets_n: hard_label_loss(student.head(states_nD), targets_n)[:, None],
        [student.states, batch.targets],
        student.vocabulary,
    )
    return found_N1[:, 0]


def compare_rows(
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    kind: Divergence = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    hard: bool = False,
) -> Tensor:
    """Divergence from the teacher in nats, [N, 1]; with ``hard`` also cross-entropy of the learned tokens, [N, 2].

    Logits that only one of the two has belong to no token (padding of a vocabulary) and are left out of the divergence.
    """
    shared = min(student.vocabulary, teacher.vocabulary)

    def compare(student_nD: Tensor, teacher_nD: Tensor, targets_n: Tensor) -> Tensor:
        logits_nV = student.head(student_nD)
        with torch.no_grad():
            taught_nV = teacher.head(teacher_nD)
        soft_n = divergence(logits_nV[:, :shared], taught_nV[:, :shared], kind, temperature, beta)
        return torch.stack([soft_n, hard_label_loss(logits_nV, targets_n)] if hard else [soft_n], 1)

    rows = [student.states, teacher.states, batch.targets]
    return map_rows(compare, rows, student.vocabulary + teacher.vocabulary)


def log_likelihoods(student: Outputs, batch: Batch) -> Tensor:
    """Log-likelihood [B] in nats of the learned tokens of each text; 0 for a text without any."""
    by_token_N = -cross_entropy(student, batch)
    return by_token_N.new_zeros(len(batch.ids)).index_add(0, batch.rows, by_token_N)
