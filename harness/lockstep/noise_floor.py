"""The reference computed otherwise: nothing that is asked changes, and whatever numbers move by is noise.

A reference under a condition is one more variant of the shared pass, with tables of its own, so that every metric of
every pass probe gets its floor from the same measures as its value.

    batch_size       each document alone (one that is alone already beside a copy of itself): other sizes of products
    padding_side     padding on the left, with masks and positions to match
    document_order   the documents of a batch from the last to the first, every other one apart: other neighbours
    attention        eager attention where the reference uses a fused kernel, else PyTorch's own (sdpa)
    rounding         every weight moved by one unit in its last place, up or down by chance

Rounding stays in the dtype of the reference. A stored weight stands for all numbers that round to it, and two ways to
convert one checkpoint (to nearest, or cut off) differ by up to that unit: closer the weights are not known. Another
dtype would be another model: bfloat16 keeps 8 of float32's 24 bits, which is a compression to be judged, not noise.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.data.encoding import EncodedDocument
from harness.errors import ModelError
from harness.lockstep.arrangement import Arrange, one_by_one, other_order, padded_left

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from harness.records import Condition

ARRANGED: dict[str, Arrange] = {
    "batch_size": one_by_one,
    "padding_side": padded_left,
    "document_order": other_order,
}
SEED = 20_611
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers as wide as a float: neighbours among floats of one sign are neighbours among these."""


def floor_sample(documents: Sequence[EncodedDocument], count: int) -> list[EncodedDocument]:
    """Evenly many of all lengths, at most ``count``, in their order: short and long ones meet other kernels."""
    kept = sorted((each for each in documents if each.tokens > 0), key=lambda each: (len(each.ids), each.index))
    count = min(count, len(kept))
    chosen = [kept[(2 * number + 1) * len(kept) // (2 * count)] for number in range(count)]
    return sorted(chosen, key=lambda each: each.index)


def under(condition: Condition, reference: LoadedModel) -> tuple[LoadedModel, Arrange | None]:
    """The reference under a condition: a model, and how its batches are arranged.

    The reference stays as it is. Other attention shares its weights, other rounding is a copy as large as it is.
    Raises ModelError where the condition cannot be had.
    """
    if condition in ARRANGED:
        return replace(reference, name=condition), ARRANGED[condition]
    make = other_attention if condition == "attention" else rounded_otherwise
    try:
        return reference.with_modules(condition, make(reference.model)), None
    except (ValueError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{reference.name}: the noise floor under {condition} cannot be had ({type(error).__name__}: {error}); "
            f"remove {condition} from the suite's noise_floor"
        ) from error


def other_attention(model: Any) -> Any:
    """The model with the same tensors and another implementation of attention. ValueError where it has no other."""
    used = model.config._attn_implementation
    tensors = chain(model.parameters(), model.buffers())
    other = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    other.set_attn_implementation("sdpa" if used == "eager" else "eager")
    if other.config._attn_implementation == used or model.config._attn_implementation != used:
        raise ValueError(f"its attention stays {used}")
    return other


def rounded_otherwise(model: Any) -> Any:
    """A copy in which every weight is the next number up or down, by chance from a fixed seed; zeros stay."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for number, weight in enumerate(other.parameters()):
            if weight.is_floating_point() and weight.element_size() in _WHOLE:
                weight.copy_(_next(weight, number))
    return other


def _next(weight: Tensor, number: int) -> Tensor:
    chance = torch.Generator().manual_seed(SEED + number)
    step = 2 * torch.randint(0, 2, weight.shape, generator=chance, dtype=torch.int8) - 1
    whole = weight.detach().contiguous().view(_WHOLE[weight.element_size()])
    moved = (whole + step.to(weight.device)).view(weight.dtype)
    return torch.where((weight == 0) | ~moved.isfinite(), weight, moved)
