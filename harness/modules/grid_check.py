"""Verifies that fake-quantized weights lie on their declared grid: on the values themselves, after the last step.

The values that share a scale must lie on the declared grid for some scale. Which one is not asked (a later folding
may have changed it), so the largest value of a block is tried as every value that the grid has: with s = max|x| / v for
one v (of grids with a zero point, s = (max − min) / v), all others must be values of the grid times s, up to the
rounding of the type that holds them. That says more than counting distinct values, and it also tells for groups of
fewer values than the grid has.

Where columns are grouped by an index (act-order of GPTQ), the groups are not known. A row then has at most as many
distinct values as its groups have together.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import torch
from torch import Tensor, nn

from harness.errors import BackendError
from harness.modules.experts import stacked_tensor
from harness.modules.linears import Linear, weight_of
from harness.numerics.formats import blocks_of, known_grid
from harness.numerics.grids import Codebook, Float8, Grid, Integer, Steps, integer
from harness.records import ModuleFormat

COUNTED = 2**22
"""Values of a module, at most, among which distinct ones are counted; on the grid all must be."""


def check_grids(model: nn.Module, declared: Mapping[str, ModuleFormat]) -> dict[str, int]:
    """The largest number of distinct values in a block of every module that holds values of a format as floats.

    Left out is what cannot be told: formats whose values are not known here, and modules without a weight. Raises
    BackendError naming the first module whose weight is not in the declared format.
    """
    counts = {}
    for name, module in declared.items():
        form, grid = module.format, known_grid(module.format)
        own_codebooks = form.type == "codebook" and not form.element and form.granularity == "channel"
        weights = _weights(model, name) if module.kernel == "simulated" and (own_codebooks or grid) else []
        if own_codebooks and weights:
            counts[name] = _check_codebooks(torch.cat(weights), module)
        elif grid:
            in_blocks = [_check_blocks(weight_OI, grid, module) for weight_OI in weights]
            if known := [count for count in in_blocks if count is not None]:
                counts[name] = max(known)
    return counts


def on_grid(blocks: Tensor, grid: Grid, held_in: torch.dtype) -> Tensor:
    """Of blocks [M, n], whether each lies on the grid for some scale, bool [M]. Blocks of zeros do.

    held_in: the type to which the values were rounded once, and the largest of them too, of which the scale is made;
    each by half a unit in its last place (of small numbers, half the smallest).
    """
    info = torch.finfo(held_in)
    relative, absolute = 1.25 * info.eps + 4 * torch.finfo(torch.float32).eps, 1.25 * info.tiny * info.eps
    symmetric = grid
    if isinstance(grid, Integer) and not grid.symmetric:
        # Codes less their zero point lie between −(2^b − 1) and 2^b − 1, and the ends of a block mostly that far apart.
        symmetric = integer(grid.bits + 1)
        reach_M = blocks.amax(-1).clamp(min=0) - blocks.amin(-1).clamp(max=0)
    else:
        reach_M = blocks.abs().amax(-1)
    good_M = reach_M == 0
    for value in _sizes(symmetric):
        left = torch.nonzero(~good_M)[:, 0]
        if not len(left):
            break
        some = blocks[left]
        near = symmetric.round(some, Steps(reach_M[left, None] / value))
        good_M[left] = ((near - some).abs() <= relative * some.abs() + absolute).all(-1)
    return good_M


def count_distinct(blocks: Tensor) -> int:
    """The largest number of distinct values in any of the blocks [M, n]."""
    return int(_count_each(blocks).max())


def _count_each(blocks: Tensor) -> Tensor:
    """How many distinct values each block has, int64 [M]."""
    ordered = blocks.sort(-1).values
    counts_M: Tensor = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(-1)
    return counts_M


def _check_codebooks(weight_OI: Tensor, declared: ModuleFormat) -> int:
    """Distinct values in a row, which has 2^bits in its codebook and as many others as sparse values were counted."""
    bits, counts_O = declared.format.bits or 0, _count_each(weight_OI)
    others = int((counts_O - 2**bits).clamp(min=0).sum())
    # What is stored beside codes takes at least 16 bits a value, so that no more sparse values than this can be meant.
    sparse = (declared.bits_per_weight - bits) * weight_OI.numel() / 16 if declared.format.sparse else 0
    if others > sparse:
        what = f"{int(counts_O.max())} distinct values, and all rows together {others} more than their codebooks have"
        raise BackendError(_message(declared, "row", what))
    return int(counts_O.max())


def _check_blocks(weight_OI: Tensor, grid: Grid, declared: ModuleFormat) -> int | None:
    """Distinct values in a block; None where the groups are not known and a row says nothing about them."""
    values_OI, form = weight_OI if weight_OI.dtype == torch.float64 else weight_OI.float(), declared.format
    if form.act_order:
        most = 2**grid.bits * ceil(weight_OI.shape[1] / (form.group_size or 1))
        if (count := count_distinct(_some(values_OI))) > most:
            raise BackendError(_message(declared, "row", f"{count} distinct values, of {most} that it can have"))
        return None
    partition = blocks_of(form)
    blocks = partition.split(values_OI).flatten(0, -2)
    off_M = torch.nonzero(~on_grid(blocks, grid, weight_OI.dtype))[:, 0]
    # Where symmetric codes reach one further down than up, a scale below 0 (AutoRound has such) turns that around.
    off_M = off_M[~on_grid(-blocks[off_M], grid, weight_OI.dtype)]
    count = count_distinct(_some(blocks))
    if len(off_M):
        first = count_distinct(blocks[off_M[:1]])
        what = f"{first} distinct values that lie on no such grid (as in {len(off_M)} of {len(blocks)})"
        raise BackendError(_message(declared, partition.kind, what))
    if count > 2**grid.bits:
        raise BackendError(
            _message(declared, partition.kind, f"{count} distinct values, of {2**grid.bits} that it can have")
        )
    return count


def _message(declared: ModuleFormat, unit: str, what: str) -> str:
    return (
        f"{declared.backend}: {declared.module} is declared as {declared.format}, but a {unit} of its weight holds "
        f"{what}; a later step changed the weight, or its description is wrong: put steps that change weights before "
        "those that quantize them"
    )


def _weights(model: nn.Module, name: str) -> list[Tensor]:
    """The weights [O, I] that a module, or each expert of a stack, computes with, if they are floats."""
    stack = stacked_tensor(model, name)
    if stack is not None:
        return list(stack)
    found = _weight(model.get_submodule(name))
    return [] if found is None else [found]


def _weight(module: nn.Module) -> Tensor | None:
    """The weight [O, I] that the module computes with, if it has one of floats or a tensor that says what it means."""
    weight = weight_of(module) if isinstance(module, Linear) else getattr(module, "weight", None)
    if isinstance(weight, Tensor) and hasattr(weight, "__tensor_flatten__"):
        weight = weight.dequantize()
    plain = isinstance(weight, Tensor) and weight.dim() == 2 and weight.is_floating_point()
    return weight.detach() if plain and isinstance(weight, Tensor) and weight.numel() else None


def _sizes(grid: Grid) -> list[float]:
    """Every absolute value of the grid above 0, the largest first."""
    if isinstance(grid, Integer):
        return [float(size) for size in range(max(-grid.code_range[0], grid.code_range[1]), 0, -1)]
    if isinstance(grid, Float8):
        values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(grid.dtype).float()
    else:
        values = torch.tensor(grid.values if isinstance(grid, Codebook) else (grid.largest,))
    sizes = {abs(value) for value in values.tolist() if 0 < abs(value) < float("inf")}
    return sorted(sizes, reverse=True)


def _some(blocks: Tensor) -> Tensor:
    """Blocks spread over all, as many as have at most COUNTED values."""
    step = max(1, blocks.numel() // COUNTED)
    return blocks[::step]
