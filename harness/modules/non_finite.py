"""Finds NaN and infinity in everything that a model stores, and names the expert or the row that holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.modules.experts import stacks
from harness.modules.inspection import named_tensors
from harness.numerics.formats import is_finite
from harness.progress import track
from harness.records import Note

_MOST_UNITS = 8
"""So many ranges of rows are named; of more, the rest is counted."""


@dataclass(frozen=True)
class NonFinite:
    """A tensor with NaN or infinity. units: the experts or rows that have such values, as text; empty for a vector.

    sha256: of the shape, and of which value is NaN, infinity, or its negative. Two sides with the same one have the
    very same values there, as the masks of both sides of a pair do.
    """

    tensor: str
    units: str
    sha256: str

    def __str__(self) -> str:
        """ "model.embed_tokens.weight, rows 1400–1409"."""
        return f"{self.tensor}, {self.units}" if self.units else self.tensor


def find_non_finite(model: nn.Module) -> tuple[NonFinite, ...]:
    """Every parameter and persistent buffer with NaN or infinity, by name; 8-bit floats and scales included."""
    experts = {name for name, _, _ in stacks(model)}
    tensors = track("look for NaN", list(named_tensors(model)))
    found = (describe(name, tensor, name in experts) for name, tensor in tensors)
    return tuple(sorted((each for each in found if each is not None), key=lambda each: each.tensor))


def describe(name: str, tensor: Tensor, stacked: bool = False) -> NonFinite | None:
    """What of a tensor is not finite; None if all of it is. stacked: its first dimension is that of experts."""
    if not tensor.is_floating_point():
        return None
    values = tensor.float() if tensor.element_size() == 1 else tensor  # Of 8-bit floats, torch tells no NaN.
    if is_finite(values):
        return None
    finite = torch.isfinite(values)
    kinds = values.isnan().byte() + 2 * values.isposinf().byte() + 3 * values.isneginf().byte()
    digest = hashlib.sha256(str(list(tensor.shape)).encode())
    digest.update(kinds.cpu().contiguous().numpy().tobytes())
    units = ""
    if tensor.dim() > 1:
        bad_U = (~finite).flatten(1).any(1).nonzero()[:, 0].tolist()
        units = format_units("expert" if stacked else "row", bad_U)
    return NonFinite(name, units, digest.hexdigest())


def note_non_finite(name: str, found: Sequence[NonFinite]) -> tuple[Note, ...]:
    """A warning that tensors of the model ``name`` hold NaN or infinity; none if ``found`` is empty."""
    if not found:
        return ()
    text = f"{name}: {len(found)} tensors contain NaN or infinity, first {found[0]}"
    return (Note(topic="non-finite weights", text=text, level="warn"),)


def format_units(what: str, numbers: Sequence[int]) -> str:
    """Numbers in ascending order as ranges: "rows 3, 1400–1409", "expert 3"."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    texts = [str(first) if first == last else f"{first}–{last}" for first, last in ranges]
    shown = ", ".join(texts[:_MOST_UNITS])
    rest = f" and {len(texts) - _MOST_UNITS} more" if len(texts) > _MOST_UNITS else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}{rest}"
