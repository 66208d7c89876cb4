"""The parts of a model that documents may leave untouched, and how the two sides of a pair differ there.

    modules   towers and heads that no text runs, and experts that are modules: one unit each
    experts   stacks of experts: a unit is one expert
    rows      embeddings that are read row by row: a unit is one row
    unread    tensors that the class leaves in the files: one unit each

Everything else took part in every document.

Legend: U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models.loaded import LoadedModel
from harness.models.sanity import CACHE_SCALES
from harness.models.weight_files import UnreadTensor, read_tensor
from harness.modules.effective_weights import effective_weight
from harness.modules.experts import stacked_tensor, stacks
from harness.modules.inspection import own_tensors
from harness.records import ModuleFormat

Kind = Literal["module", "experts", "rows", "unread"]
ROUNDING, SMALLEST = 2.0**-8, 2.0**-24
"""Relative and absolute difference of a weight that rounding to bfloat16 or float16 explains."""
DAMAGED = 0.9
"""Relative error from which a weight says next to nothing of the reference's: zeros have 1, 2-bit formats about 0.5."""
_CHUNK = 2**24
"""Values of one side that are compared at a time."""


@dataclass(frozen=True)
class ModelPart:
    """One part of one side. parameters and bytes: of all units together. owner: the module whose calls show its use.

    compressed: whether a step or a checkpoint put it into another format than plain floats.
    """

    name: str
    kind: Kind
    units: int
    parameters: int
    bytes: int
    owner: str = ""
    compressed: bool = False


def list_parts(side: LoadedModel, modules: Sequence[str], tables: Sequence[str]) -> list[ModelPart]:
    """The parts of a side. modules: those that no text runs; tables: embeddings of which only looked-up rows are read.

    A weight that is counted with another module (tied) is none of them.
    """
    model = side.language_model.modules
    formats = {stated.module: stated for stated in side.identity.modules}
    parts = []
    if model is not None:
        for name, module, parameter in stacks(model):
            if name in formats:
                units = int(getattr(module, parameter).shape[0])
                parts.append(_part(formats[name], "experts", units, name.rpartition(".")[0]))
        for name in tables:
            if name in formats:
                units = int(cast(Tensor, model.get_submodule(name).weight).shape[0])
                parts.append(_part(formats[name], "rows", units, name))
        parts += [_part(formats[name], "module", 1, name) for name in modules if name in formats]
    # Scales of a KV cache are no weights; a note says what they are.
    unread = [each for each in side.unread if not CACHE_SCALES.fullmatch(each.name)]
    parts += [ModelPart(each.name, "unread", 1, each.values, each.bytes) for each in unread]
    return [part for part in parts if part.parameters]


def _part(stated: ModuleFormat, kind: Kind, units: int, owner: str) -> ModelPart:
    return ModelPart(stated.module, kind, units, stated.parameters, stated.stored_bytes, owner, stated.compressed)


def find_counterparts(parts: Sequence[ModelPart], other: LoadedModel) -> set[str]:
    """Names of the parts that the other side has, too, whether texts run it there or not."""
    unread = {each.name for each in other.unread}
    model = other.language_model.modules
    known = unread | {stated.module for stated in other.identity.modules}
    if model is not None:
        known |= {name for name, _ in model.named_modules()}
    return {part.name for part in parts if part.name in known}


@torch.no_grad()
def compare_part(part: ModelPart, reference: LoadedModel, variant: LoadedModel) -> tuple[Tensor, Tensor]:
    """Which units of a part of the variant are not the reference's, bool [U], and which say nothing of it, bool [U].

    The first allows for rounding to 16 bits; units of a compressed part always differ. The second has a relative error
    of more than DAMAGED, as far as values can be read. What the reference lacks differs.
    """
    if part.kind == "unread":
        return _compare_unread(part, reference, variant)
    changed, damaged = torch.ones(part.units, dtype=torch.bool), torch.zeros(part.units, dtype=torch.bool)
    pairs = _pair_tensors(part, reference, variant)
    if pairs is None:
        return changed, damaged
    if any(not _is_plain(tensor) for pair in pairs for tensor in pair):
        return changed, damaged | _is_damaged_layer(part, reference, variant)
    changed[:] = False
    for before_UN, after_UN in pairs:
        other_U, lost_U = compare_units(before_UN, after_UN)
        changed[: len(other_U)] |= other_U
        damaged[: len(lost_U)] |= lost_U
    return changed, damaged


def compare_units(before_UN: Tensor, after_UN: Tensor) -> tuple[Tensor, Tensor]:
    """As compare_part, for plain values: units that differ, and damaged ones, bool [U] of those on both sides."""
    units, step = min(len(before_UN), len(after_UN)), max(1, _CHUNK // max(1, before_UN.shape[1]))
    changed, damaged = [torch.zeros(0, dtype=torch.bool)], [torch.zeros(0, dtype=torch.bool)]
    for start in range(0, units, step):
        rows = slice(start, min(units, start + step))
        before, after = before_UN[rows].float(), after_UN[rows].float().to(before_UN.device)
        changed.append(~torch.isclose(after, before, rtol=ROUNDING, atol=SMALLEST, equal_nan=True).all(1).cpu())
        error = (after - before).square().sum(1) / before.square().sum(1).clamp(min=SMALLEST**2)
        damaged.append((error > DAMAGED**2).cpu())
    return torch.cat(changed), torch.cat(damaged)


def _compare_unread(part: ModelPart, reference: LoadedModel, variant: LoadedModel) -> tuple[Tensor, Tensor]:
    before, after = (_unread(side, part.name) for side in (reference, variant))
    if before is None or after is None:
        return torch.tensor([after is not None]), torch.tensor([False])
    if before.sha256 == after.sha256:
        return torch.tensor([False]), torch.tensor([False])
    old, new = read_tensor(before), read_tensor(after)
    if old.shape != new.shape or not _is_plain(old) or not _is_plain(new):
        return torch.tensor([True]), torch.tensor([False])
    return compare_units(old.reshape(1, -1), new.reshape(1, -1))


def _unread(side: LoadedModel, name: str) -> UnreadTensor | None:
    return next((each for each in side.unread if each.name == name), None)


def _pair_tensors(part: ModelPart, reference: LoadedModel, variant: LoadedModel) -> list[tuple[Tensor, Tensor]] | None:
    """The tensors [U, N] of a part on both sides; None if the reference has no such part, or one of another shape."""
    if part.kind == "experts":
        stacked = [stacked_tensor(side.model, part.name) for side in (reference, variant)]
        before, after = [{} if tensor is None else {part.name: tensor} for tensor in stacked]
    else:
        try:
            modules = [side.model.get_submodule(part.name) for side in (reference, variant)]
        except AttributeError:
            return None
        before, after = [dict(own_tensors(module)) for module in modules]
    if part.compressed and before.keys() != after.keys():  # Packed on one side alone.
        return [(tensor, tensor) for tensor in (*before.values(), *after.values())]
    pairs = [(tensor, after[name]) for name, tensor in before.items() if name in after]
    first = 1 if part.kind == "rows" else 0  # A table may have more rows on one side.
    if before.keys() != after.keys() or any(old.shape[first:] != new.shape[first:] for old, new in pairs):
        return None
    if part.kind == "module":
        return [(old.reshape(1, -1), new.reshape(1, -1)) for old, new in pairs]
    return [(old.flatten(1), new.flatten(1)) for old, new in pairs]


def _is_damaged_layer(part: ModelPart, reference: LoadedModel, variant: LoadedModel) -> bool:
    """Whether a linear layer of packed codes computes with a weight that says nothing of the reference's."""
    module = reference.model.get_submodule(part.owner) if part.kind == "module" else None
    if not isinstance(module, nn.Linear):
        return False
    try:
        other = variant.model.get_submodule(part.name)
        before, after = (effective_weight(each, reference.model.dtype) for each in (module, other))
    except ModelError:
        return False
    if not before.held or before.total != after.total or len(before.weight) != len(after.weight):
        return False
    held = before.weight[:, after.inputs.to(before.weight.device)].float()
    error = (after.weight.to(held.device).float() - held).square().sum()
    return bool(error > DAMAGED**2 * held.square().sum())


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1
