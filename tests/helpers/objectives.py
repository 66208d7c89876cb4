"""Batches and outputs of models for tests of objectives, made from plain logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.training.examples import Batch, Example, make_batch
from harness.training.objectives import Objective
from harness.training.objectives._outputs import AttentionInputs, Outputs, Seen


def batch(lengths: Sequence[int] = (7, 4), scored_from: Sequence[int] = (1, 1), vocabulary: int = 12) -> Batch:
    """Random texts of these lengths."""
    chance = torch.Generator().manual_seed(0)
    texts = [
        Example(torch.randint(1, vocabulary, (length,), generator=chance), start)
        for length, start in zip(lengths, scored_from, strict=True)
    ]
    return make_batch(texts, range(len(texts)))


def logits(of: Batch, seed: int, vocabulary: int = 12, spread: float = 2.0) -> Tensor:
    """Random logits [B, T, V], in double precision."""
    chance = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*of.ids.shape, vocabulary, generator=chance, dtype=torch.float64)


def outputs(
    of: Batch, logits_BTV: Tensor, blocks: Sequence[Tensor] = (), attention: Sequence[AttentionInputs] = ()
) -> Outputs:
    """Of a model whose last hidden states are its logits."""
    return Outputs(of.select(logits_BTV), lambda states: states, logits_BTV.shape[-1], tuple(blocks), tuple(attention))


def seen(of: Batch, student: Outputs, teacher: Outputs | None = None, before: Tensor | None = None) -> Seen:
    """A step without parts."""
    return Seen(of, student, teacher, nn.Module(), before)


def loss_of(objective: Objective, given: Seen) -> Tensor:
    """The sum of its terms."""
    return torch.stack(list(objective.terms(given).values())).sum()
