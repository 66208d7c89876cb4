"""Whether weights are what is said of them: a look at the values themselves after the last step.

The values that share a scale must lie on the stated grid for some scale. Which one is not asked (a later folding
may have changed it), so the largest value of a block is tried as every value that the grid has: with s = max|x| / v for
one v (of grids with a zero point, s = (max − min) / v), all others must be values of the grid times s, up to the
rounding of the type that holds them. That says more than counting distinct values, and it also tells for groups of
fewer values than the grid has.

Where columns are grouped by an index (activation order of GPTQ), the groups are not known. A row then has at most as
many distinct values as its groups have together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import ceil

import torch
from torch import Tensor, nn

from harness.errors import BackendError
from harness.modules.experts import stacked_tensor
from harness.modules.linears import Linear, weight_of
from harness.numerics.formats import named_format
from harness.numerics.granularity import Blocks
from harness.numerics.grids import Codebook, Float8, Grid, Integer, Steps, integer
from harness.records import ModuleFormat

COUNTED = 2**22
"""Values of a module, at most, among which distinct ones are counted; on the grid all must be."""
_CODEBOOK = re.compile(r"codebook([2-8])(\+sparse)?")
_INTEGER = re.compile(r"int([2-8])")
_NAMED = ("fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "nf4", "mxfp4", "mxfp8_e4m3", "mxfp8_e5m2", "nvfp4")


def check_levels(model: nn.Module, described: Mapping[str, ModuleFormat]) -> dict[str, int]:
    """The largest number of distinct values in a block of every module that holds values of a format as floats.

    Left out is what cannot be told: formats whose values are not known here, and modules without a weight. Raises
    BackendError naming the first module whose weight is not of the format that is stated.
    """
    found = {}
    for name, stated in described.items():
        weights = _weights(model, name) if stated.kernel == "simulated" else []
        grid, codebook = _grid(stated), _CODEBOOK.fullmatch(stated.format)
        if codebook and stated.granularity == "channel" and weights:
            found[name] = _codebook_levels(torch.cat(weights), int(codebook[1]), stated)
        elif grid:
            levels = [_levels(weight_OI, grid, stated) for weight_OI in weights]
            if counted := [each for each in levels if each is not None]:
                found[name] = max(counted)
    return found


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


def distinct(blocks: Tensor) -> int:
    """The largest number of distinct values in any of the blocks [M, n]."""
    return int(_distinct(blocks).max())


def _distinct(blocks: Tensor) -> Tensor:
    """How many distinct values each block has, int64 [M]."""
    ordered = blocks.sort(-1).values
    counts_M: Tensor = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(-1)
    return counts_M


def _codebook_levels(weight_OI: Tensor, bits: int, stated: ModuleFormat) -> int:
    """Distinct values in a row, which has 2^bits in its codebook and as many others as sparse values were counted."""
    counts_O = _distinct(weight_OI)
    others = int((counts_O - 2**bits).clamp(min=0).sum())
    # What is stored beside codes takes at least 16 bits a value, so that no more sparse values than this can be meant.
    sparse = (stated.bits_per_weight - bits) * weight_OI.numel() / 16 if stated.format.endswith("sparse") else 0
    if others > sparse:
        what = f"{int(counts_O.max())} distinct values, and all rows together {others} more than their codebooks have"
        raise BackendError(_message(stated, "row", what))
    return int(counts_O.max())


def _levels(weight_OI: Tensor, grid: Grid, stated: ModuleFormat) -> int | None:
    """Distinct values in a block; None where the groups are not known and a row says nothing about them."""
    values_OI = weight_OI if weight_OI.dtype == torch.float64 else weight_OI.float()
    if _indexed(weight_OI, stated):
        most = 2**grid.bits * ceil(weight_OI.shape[1] / (stated.group_size or 1))
        found = distinct(_some(values_OI))
        if found > most:
            raise BackendError(_message(stated, "row", f"{found} distinct values, of {most} that it can have"))
        return None
    kind = "tensor" if stated.granularity == "none" else stated.granularity
    blocks = Blocks(kind, stated.group_size if kind in ("group", "block") else None).split(values_OI).flatten(0, -2)
    off_M = torch.nonzero(~on_grid(blocks, grid, weight_OI.dtype))[:, 0]
    # Where symmetric codes reach one further down than up, a scale below 0 (AutoRound has such) turns that around.
    off_M = off_M[~on_grid(-blocks[off_M], grid, weight_OI.dtype)]
    found = distinct(_some(blocks))
    if len(off_M):
        count = distinct(blocks[off_M[:1]])
        what = f"{count} distinct values that lie on no such grid (as in {len(off_M)} of {len(blocks)})"
        raise BackendError(_message(stated, kind, what))
    if found > 2**grid.bits:
        raise BackendError(_message(stated, kind, f"{found} distinct values, of {2**grid.bits} that it can have"))
    return found


def _message(stated: ModuleFormat, unit: str, what: str) -> str:
    size = f" of {stated.group_size}" if stated.group_size else ""
    return (
        f"{stated.backend}: {stated.module} is said to be {stated.format} by {stated.granularity}{size}, but a {unit} "
        f"of its weight holds {what}; a later step changed the weight, or its description is wrong: put steps that "
        "change weights before those that quantize them"
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


def _grid(stated: ModuleFormat) -> Grid | None:
    """A grid that has every value of the stated format, None for one that is not known."""
    if match := _INTEGER.fullmatch(stated.format):
        return integer(int(match[1]), bool(stated.symmetric), full_range=bool(stated.symmetric))
    return named_format(stated.format).grid if stated.format in _NAMED else None


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


def _indexed(weight_OI: Tensor, stated: ModuleFormat) -> bool:
    """Whether more is stored than codes, 16-bit scales and zero points: an index of the columns' groups."""
    match = _INTEGER.fullmatch(stated.format)
    if match is None or stated.granularity != "group" or not stated.group_size:
        return False
    bits = int(match[1])
    groups = weight_OI.shape[0] * ceil(weight_OI.shape[1] / stated.group_size)
    known = weight_OI.numel() * bits + groups * (16 + (0 if stated.symmetric else bits))
    beyond = stated.bits_per_weight * weight_OI.numel() - known
    # An index takes at most 32 bits a column; libraries that keep codes in more bits than these have need far more.
    return 0.5 < beyond < 32 * weight_OI.shape[1] + 0.5


def _some(blocks: Tensor) -> Tensor:
    """Blocks spread over all, as many as have at most COUNTED values."""
    step = max(1, blocks.numel() // COUNTED)
    return blocks[::step]
