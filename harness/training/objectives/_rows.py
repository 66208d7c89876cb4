"""Losses of rows of logits: against the token that follows, and against the distribution of a teacher.

Computed in chunks of rows: the logits of a large vocabulary are the largest tensors of a training step, so they are
computed again in the backward pass rather than kept.

Legend: N rows (positions that predict a token), V vocabulary, D hidden size, K named parts of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

Divergence = Literal["forward", "reverse", "jensen_shannon"]
CHUNK_VALUES = 1 << 25
"""Logits of one model that are in memory at the same time, 128 MiB in single precision."""


def hard_label_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy [N] in nats of the token that follows, int64."""
    return cross_entropy(_widen(logits_NV), targets_N, reduction="none")


def log_likelihood(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Log-likelihood [N] in nats of the token that follows, int64."""
    return -hard_label_loss(logits_NV, targets_N)


def divergence(
    student_NV: Tensor, teacher_NV: Tensor, kind: Divergence = "forward", temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """Divergence [N] in nats of two rows of logits, both divided by ``temperature``.

    forward: KL(teacher‖student). reverse: KL(student‖teacher). jensen_shannon: β·KL(teacher‖M) + (1 − β)·KL(student‖M)
    with M = β·teacher + (1 − β)·student (Agarwal et al. 2024, equation 1). No gradient flows to the teacher.
    """
    student = (_widen(student_NV) / temperature).log_softmax(-1)
    teacher = (_widen(teacher_NV.detach()) / temperature).log_softmax(-1)
    if kind == "forward":
        return _relative_entropy(teacher, student)
    if kind == "reverse":
        return _relative_entropy(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _relative_entropy(teacher, mixture) + (1 - beta) * _relative_entropy(student, mixture)


def map_rows(losses: Callable[..., Tensor], rows: Sequence[Tensor], values: int) -> Tensor:
    """Values [N, K] of ``losses``, which takes n of the rows of every tensor and gives [n, K].

    values: numbers that ``losses`` computes for a row, by which the chunks are sized. A single chunk is kept for the
    backward pass, several are computed again there. Raises ValueError without rows.
    """
    count, size = len(rows[0]), max(1, CHUNK_VALUES // values)
    if not count:
        raise ValueError("no position of the batch predicts a token")
    if count <= size:
        return losses(*rows)
    chunks = zip(*(tensor.split(size) for tensor in rows), strict=True)
    # Nothing inside draws random numbers, so their state need not be kept.
    found = [checkpoint(losses, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(found)


def _relative_entropy(first_NV: Tensor, second_NV: Tensor) -> Tensor:
    """KL(first‖second) [N] of two rows of log-probabilities."""
    return (first_NV.exp() * (first_NV - second_NV)).sum(-1)


def _widen(logits: Tensor) -> Tensor:
    """The logits in single precision at least."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
