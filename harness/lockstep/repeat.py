"""Determinism of a model: the same batch run twice. Differences below those of the two runs are meaningless."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.lockstep.batches import Batch
from harness.lockstep.kernels import Kernels
from harness.lockstep.logit_statistics import logit_statistics
from harness.lockstep.pass_report import Repeat

if TYPE_CHECKING:
    from harness.lockstep.decoder import Decoder


def measure_repeat(decoder: Decoder, batch: Batch, kernels: Kernels, chunk: int) -> Repeat:
    """Run ``batch`` twice. Call with gradients disabled."""
    targets = batch.index_scored(decoder.device)[1]
    first, second = decoder.scored_states(batch), decoder.scored_states(batch)
    kl, largest = [], []
    for a, b, y in zip(*(torch.split(rows, chunk) for rows in (first, second, targets)), strict=True):
        statistics = logit_statistics(decoder.logits(a), decoder.logits(b), y, kernels.logits)
        kl.append(statistics["kl"])
        largest.append(statistics["max_abs_diff"])
    return Repeat(float(torch.cat(kl).mean()), float(torch.cat(largest).max()), len(targets))
