"""Noise floor: the reference computed in an equivalent way; any change of a metric is numerical noise.

A reference under a condition runs as another variant of the shared pass, with its own tables, so that the floor of
every metric of every pass probe comes from the same measures as its value.

    batch_size       each document alone (a batch of one document with a copy of it): other shapes of products
    padding_side     padding on the left, with matching masks and positions
    document_order   the documents of a batch in reverse order, split into every other one: other neighbours
    attention        eager attention if the reference uses a fused kernel, else PyTorch's own (sdpa)
    rounding         every weight moved by one unit in its last place, up or down at random

Rounding stays in the dtype of the reference. A stored weight represents all numbers that round to it, and two ways to
convert one checkpoint (to nearest, or truncated) differ by up to that unit: the weights are not known more precisely.
Another dtype would be another model: bfloat16 keeps 8 of float32's 24 bits, which is compression to be judged, not
noise.
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
from harness.lockstep.arrangement import Arrange, one_by_one, pad_left, reorder
from harness.models.verification.architecture import Architecture, find_objections

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from harness.records import Condition

ARRANGEMENTS: dict[str, Arrange] = {
    "batch_size": one_by_one,
    "padding_side": pad_left,
    "document_order": reorder,
}
SEED = 20_611
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as a float: neighbouring floats of one sign are neighbouring integers."""


def sample_documents(documents: Sequence[EncodedDocument], count: int) -> list[EncodedDocument]:
    """At most ``count`` documents, evenly spread over all lengths (which use different kernels), in their order."""
    kept = sorted((each for each in documents if each.tokens > 0), key=lambda each: (len(each.ids), each.index))
    count = min(count, len(kept))
    chosen = [kept[(2 * number + 1) * len(kept) // (2 * count)] for number in range(count)]
    return sorted(chosen, key=lambda each: each.index)


def apply_condition(condition: Condition, reference: LoadedModel) -> tuple[LoadedModel, Arrange | None]:
    """The reference under a condition: a model and its batch layout.

    The reference is unchanged. ``attention`` shares its weights, ``rounding`` is a full copy.
    Raises ModelError if the condition is not available.
    """
    if condition in ARRANGEMENTS:
        return replace(reference, name=condition), ARRANGEMENTS[condition]
    make = switch_attention if condition == "attention" else perturb_weights
    try:
        return reference.with_modules(condition, make(reference.model)), None
    except (ValueError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{reference.name}: the noise floor {condition} is not available ({type(error).__name__}: {error}); "
            f"remove {condition} from the suite's noise_floor"
        ) from error


def switch_attention(model: Any) -> Any:
    """The model with the same tensors and another attention implementation. Raises ValueError if it has no other."""
    used = model.config._attn_implementation
    wanted = "sdpa" if used == "eager" else "eager"
    if objections := list(find_objections(Architecture(model.config, type(model)), wanted)):
        raise ValueError(objections[0])
    tensors = chain(model.parameters(), model.buffers())
    other = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    other.set_attn_implementation(wanted)
    if other.config._attn_implementation == used or model.config._attn_implementation != used:
        raise ValueError(f"its attention cannot be switched from {used}")
    return other


def perturb_weights(model: Any) -> Any:
    """A copy with every weight moved to the next number up or down, at random with a fixed seed; zeros stay zero."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for number, weight in enumerate(other.parameters()):
            if weight.is_floating_point() and weight.element_size() in _WHOLE:
                weight.copy_(_move_one_unit(weight, number))
    return other


def _move_one_unit(weight: Tensor, number: int) -> Tensor:
    chance = torch.Generator().manual_seed(SEED + number)
    step = 2 * torch.randint(0, 2, weight.shape, generator=chance, dtype=torch.int8) - 1
    whole = weight.detach().contiguous().view(_WHOLE[weight.element_size()])
    moved = (whole + step.to(weight.device)).view(weight.dtype)
    return torch.where((weight == 0) | ~moved.isfinite(), weight, moved)
