"""How far a model is from itself: the smallest difference that a comparison on this machine can mean.

The reference runs the same documents again, once in the very same batch and once each document alone. What
differs then is rounding: products of other sizes add in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.documents import EncodedDocument
from harness.lockstep.batches import Batch
from harness.lockstep.decoder import Decoder
from harness.lockstep.kernels import Kernels
from harness.lockstep.logit_statistics import logit_statistics


@dataclass(frozen=True)
class Deviation:
    """The reference against itself: mean KL in nats per token, and the largest difference of a logit."""

    kl_mean: float
    max_abs_diff: float
    tokens: int
    documents: int


@dataclass(frozen=True)
class Floor:
    """repeat: the same batch again. alone: the documents one by one (None where there is only one)."""

    repeat: Deviation
    alone: Deviation | None


def floor_documents(batches: Sequence[Batch], tokens: int) -> list[EncodedDocument]:
    """The first batch, or the beginnings of the two longest documents where a batch holds but one."""
    first = batches[0].documents
    if len(first) > 1 or len(batches) == 1:
        return list(first)
    cut = max(2, tokens // 2)
    return [replace(document, ids=document.ids[:cut]) for document in (first[0], batches[1].documents[0])]


def measure_floor(decoder: Decoder, documents: Sequence[EncodedDocument], kernels: Kernels, chunk: int) -> Floor:
    """Run ``documents`` together twice and then one by one. Call it without gradients."""
    batch = Batch(0, tuple(documents))
    targets = batch.scored(decoder.device)[1]
    together = decoder.scored_states(batch)
    again = decoder.scored_states(batch)
    repeat = _deviation(_compare(decoder, together, again, targets, kernels, chunk), len(documents))
    alone = None
    if len(documents) > 1:
        states = torch.cat([decoder.scored_states(Batch(0, (document,))) for document in documents])
        alone = _deviation(_compare(decoder, together, states, targets, kernels, chunk), len(documents))
    return Floor(repeat, alone)


def _compare(
    decoder: Decoder, left: Tensor, right: Tensor, targets: Tensor, kernels: Kernels, chunk: int
) -> tuple[Tensor, Tensor]:
    """KL and largest |difference| of every row."""
    kl, largest = [], []
    for a, b, y in zip(*(torch.split(rows, chunk) for rows in (left, right, targets)), strict=True):
        found = logit_statistics(decoder.logits(a), decoder.logits(b), y, kernels.logits)
        kl.append(found["kl"])
        largest.append(found["max_abs_diff"])
    return torch.cat(kl), torch.cat(largest)


def _deviation(rows: tuple[Tensor, Tensor], documents: int) -> Deviation:
    kl, largest = rows
    return Deviation(float(kl.mean()), float(largest.max()), len(kl), documents)


def describe(floor: Floor) -> str:
    """The floor in one sentence."""
    parts = []
    for deviation, how in ((floor.repeat, "in the same batch"), (floor.alone, "one document at a time")):
        if deviation is not None:
            parts.append(
                f"run again {how}, the reference differs from itself by a mean KL of "
                f"{deviation.kl_mean:.2g} nats per token and at most {deviation.max_abs_diff:.2g} in a logit"
            )
    return f"{'; '.join(parts)} ({floor.repeat.tokens} tokens)"
