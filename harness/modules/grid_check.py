"""Verifies that fake-quantized weights lie on their declared grid: on the values themselves, after the last step.

The values that share a scale must lie on the declared grid for some scale. The scale is not taken from the module (a
later folding may have changed it); instead the largest value of a block is tried as every value of the grid: with
s = max|x| / v for one v (for grids with a zero point, s = (max − min) / v), all others must be values of the grid times
s, up to the rounding of the dtype that holds them. This is stricter than counting distinct values, and it also works
for groups of fewer values than the grid has.

If columns are grouped by an index (act-order of GPTQ), the groups are not known. A row may then have at most as many
distinct values as its groups have together.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import ceil, gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.errors import BackendError
from harness.modules.experts import stacked_tensor
from harness.modules.linears import Linear, weight_of
from harness.numerics import native
from harness.numerics.formats import CHUNK_VALUES, blocks_of, known_grid
from harness.numerics.grids import Codebook, Float8, Grid, Integer, Steps, integer
from harness.numerics.native import BlockSweeps
from harness.progress import track
from harness.records import ModuleFormat
from harness.system.native_code import BuildError

COUNTED = 2**22
"""Maximum number of values of a module in which distinct ones are counted; all must lie on the grid."""
WORTH_BUILDING = 10**8
"""Values from which native code is worth the seconds that building it takes once a machine."""


def check_grids(model: nn.Module, declared: Mapping[str, ModuleFormat]) -> dict[str, int]:
    """The largest number of distinct values per block, for every module whose fake-quantized values are floats.

    Formats with unknown values and modules without a weight are excluded. Raises BackendError naming the first module
    whose weight is not in the declared format.
    """
    counts, sweeps = {}, choose_sweeps(sum(module.parameters for module in declared.values()))
    for name, module in track("check grids", list(declared.items())):
        form, grid = module.format, known_grid(module.format)
        own_codebooks = form.type == "codebook" and not form.element and form.granularity == "channel"
        weights = _weights(model, name) if module.kernel == "simulated" and (own_codebooks or grid) else []
        if own_codebooks and weights:
            counts[name] = _check_codebooks(torch.cat(weights), module)
        elif grid:
            in_blocks = [_check_blocks(weight_OI, grid, module, sweeps) for weight_OI in weights]
            if known := [count for count in in_blocks if count is not None]:
                counts[name] = max(known)
    return counts


def choose_sweeps(values: int) -> BlockSweeps | None:
    """Native code where there are values enough for it and it can be built; the answers are the same."""
    if values < WORTH_BUILDING:
        return None
    try:
        return native.build()
    except BuildError:
        return None


def lies_on_grid(blocks: Tensor, grid: Grid, held_in: torch.dtype) -> Tensor:
    """Whether each of the blocks [M, n] lies on the grid for some scale, bool [M]. Blocks of zeros do.

    held_in: the dtype to which the values were rounded once, including the largest one, from which the scale is
    computed; the tolerance is half a unit in the last place each (for subnormal numbers, half the smallest).
    """
    if blocks.is_cpu and len(blocks) > (rows := max(1, CHUNK_VALUES // blocks.shape[-1])):
        # Several times as fast in pieces that stay in the cache of a core.
        return torch.cat([lies_on_grid(some, grid, held_in) for some in blocks.split(rows)])
    blocks, (relative, absolute) = _compute_in(blocks), _find_tolerance(held_in)
    symmetric, size = _make_symmetric(grid), blocks.abs()
    reach_M = size.amax(-1) if grid.symmetric else blocks.amax(-1).clamp(min=0) - blocks.amin(-1).clamp(max=0)
    good_M = reach_M == 0
    for value in _list_sizes(symmetric):
        left = torch.nonzero(~good_M)[:, 0]
        if not len(left):
            break
        whole = len(left) == len(blocks)
        some, far, reach = (blocks, size, reach_M) if whole else (blocks[left], size[left], reach_M[left])
        off = symmetric.round(some, Steps(reach[:, None] / value)).sub_(some).abs_()
        # A maximum is several times as fast as a flag for every value, and NaN comes through it.
        good_M[left] = off.sub_(far, alpha=relative).amax(-1) <= absolute
    return good_M


def _make_symmetric(grid: Grid) -> Grid:
    """A grid around 0 that has all differences of codes from their zero point: they lie between −(2^b − 1) and 2^b − 1,
    and the ends of a block mostly that far apart."""
    return integer(grid.bits + 1) if isinstance(grid, Integer) and not grid.symmetric else grid


def _find_tolerance(held_in: torch.dtype) -> tuple[float, float]:
    """By how much of itself a value may be off its grid, and by how much in any case."""
    info = torch.finfo(held_in)
    return 1.25 * info.eps + 4 * torch.finfo(torch.float32).eps, 1.25 * info.tiny * info.eps


def _find_off(blocks: Tensor, grid: Grid, sweeps: BlockSweeps | None) -> Tensor:
    """Indices of the blocks [M, n] that do not lie on the grid. What native code refuses is looked at again."""
    symmetric, left_M = _make_symmetric(grid), torch.arange(len(blocks), device=blocks.device)
    if sweeps and sweeps.reads(blocks, symmetric):
        tolerance = _find_tolerance(blocks.dtype)
        good_M = sweeps.lie_on_grid(blocks, symmetric, _list_sizes(symmetric), not grid.symmetric, *tolerance)
        left_M = left_M[~good_M]
    return left_M[~lies_on_grid(blocks[left_M], grid, blocks.dtype)] if len(left_M) else left_M


def _count(blocks: Tensor, sweeps: BlockSweeps | None) -> int:
    """``count_distinct`` of the blocks, or of evenly spaced ones if they are many."""
    some = _sample_blocks(blocks)
    return sweeps.count_distinct(some) if sweeps and sweeps.counts(some) else count_distinct(some)


def count_distinct(blocks: Tensor) -> int:
    """The largest number of distinct values in any of the blocks [M, n]."""
    return int(_count_each(blocks).max())


def _count_each(blocks: Tensor) -> NDArray[np.int64]:
    """Number of distinct values of each block, [M]. 0 and −0 are one value; NaN counts as one at least."""
    return np.concatenate([_count_some(some) for some in blocks.split(max(1, CHUNK_VALUES // blocks.shape[-1]))])


def _count_some(blocks: Tensor) -> NDArray[np.int64]:
    # On a CPU, numpy sorts many short rows about ten times as fast as torch.
    ordered = np.sort(_make_keys(blocks.cpu()), axis=-1)
    rows, width = ordered.shape
    new = np.empty((rows, width), dtype=bool)
    # Over the whole memory at once, then the first of each row: many times as fast as row by row.
    np.not_equal(ordered.reshape(-1)[1:], ordered.reshape(-1)[:-1], out=new.reshape(-1)[1:])
    new[:, 0] = True
    bits = np.packbits(new.reshape(-1)).reshape(rows, -1) if width % 8 == 0 else np.packbits(new, axis=-1)
    words = bits.view(f"u{gcd(bits.shape[1], 8)}")
    counts: NDArray[np.int64] = np.bitwise_count(words).sum(-1, dtype=np.int64)
    return counts


def _make_keys(blocks: Tensor) -> NDArray[Any]:
    """Values that are equal where those of the blocks are; of 16-bit floats the integers of the same bits."""
    if blocks.element_size() != 2:
        return _compute_in(blocks).numpy()
    keys: NDArray[Any] = blocks.contiguous().view(torch.int16).numpy()
    return np.where(keys == np.iinfo(np.int16).min, np.int16(0), keys)  # −0 has the bits of the smallest integer


def _compute_in(blocks: Tensor) -> Tensor:
    """The same values in the dtype that they are checked in."""
    return blocks if blocks.dtype == torch.float64 else blocks.float()


def _check_codebooks(weight_OI: Tensor, declared: ModuleFormat) -> int:
    """Distinct values in a row: at most 2^bits from its codebook plus the number of sparse values."""
    bits, counts_O = declared.format.bits or 0, _count_each(weight_OI)
    others = int((counts_O - 2**bits).clip(min=0).sum())
    # What is stored beside codes takes at least 16 bits per value: no more sparse values than this can be meant.
    sparse = (declared.bits_per_weight - bits) * weight_OI.numel() / 16 if declared.format.sparse else 0
    if others > sparse:
        what = f"{int(counts_O.max())} distinct values, and all rows together {others} more than their codebooks allow"
        raise BackendError(_message(declared, "row", what))
    return int(counts_O.max())


def _check_blocks(weight_OI: Tensor, grid: Grid, declared: ModuleFormat, sweeps: BlockSweeps | None) -> int | None:
    """Distinct values in a block; None if the groups are not known and a row gives no bound."""
    form = declared.format
    if form.act_order:
        most = 2**grid.bits * ceil(weight_OI.shape[1] / (form.group_size or 1))
        if (count := _count(weight_OI, sweeps)) > most:
            raise BackendError(_message(declared, "row", f"{count} distinct values, allowed are {most}"))
        return None
    partition = blocks_of(form)
    blocks = partition.split(weight_OI).flatten(0, -2)
    off_M = _find_off(blocks, grid, sweeps)
    # Where symmetric codes reach one further down than up, a scale below 0 (AutoRound has such) turns that around.
    off_M = off_M[_find_off(-blocks[off_M], grid, sweeps)]
    count = _count(blocks, sweeps)
    if len(off_M):
        first = count_distinct(blocks[off_M[:1]])
        what = f"{first} distinct values that do not lie on such a grid (as in {len(off_M)} of {len(blocks)})"
        raise BackendError(_message(declared, partition.kind, what))
    if count > 2**grid.bits:
        raise BackendError(_message(declared, partition.kind, f"{count} distinct values, allowed are {2**grid.bits}"))
    return count


def _message(declared: ModuleFormat, unit: str, what: str) -> str:
    return (
        f"{declared.backend}: {declared.module} is declared as {declared.format}, but a {unit} of its weight has "
        f"{what}; a later step changed the weight, or its description is wrong: put steps that change weights before "
        "those that quantize them"
    )


def _weights(model: nn.Module, name: str) -> list[Tensor]:
    """The weights [O, I] that a module, or each expert of a stack, computes with, if they are floats."""
    stack = stacked_tensor(model, name)
    if stack is not None:
        return list(stack)
    weight = _weight(model.get_submodule(name))
    return [] if weight is None else [weight]


def _weight(module: nn.Module) -> Tensor | None:
    """The weight [O, I] that the module computes with, if it is floats or a tensor that can be dequantized."""
    weight = weight_of(module) if isinstance(module, Linear) else getattr(module, "weight", None)
    if isinstance(weight, Tensor) and hasattr(weight, "__tensor_flatten__"):
        weight = weight.dequantize()
    plain = isinstance(weight, Tensor) and weight.dim() == 2 and weight.is_floating_point()
    return weight.detach() if plain and isinstance(weight, Tensor) and weight.numel() else None


@cache
def _list_sizes(grid: Grid) -> tuple[float, ...]:
    """Every absolute value of the grid above 0: first that of its largest code, which mostly is the right one, then the
    others, largest first."""
    if isinstance(grid, Integer):
        sizes = {float(size) for size in range(1, max(-grid.code_range[0], grid.code_range[1]) + 1)}
    else:
        if isinstance(grid, Float8):
            values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(grid.dtype).float()
        else:
            values = torch.tensor(grid.values if isinstance(grid, Codebook) else (grid.largest,))
        sizes = {abs(value) for value in values.tolist() if 0 < abs(value) < float("inf")}
    return tuple(sorted(sizes, key=lambda size: (size != grid.largest, -size)))


def _sample_blocks(blocks: Tensor) -> Tensor:
    """Evenly spaced blocks, as many as have at most COUNTED values."""
    step = max(1, blocks.numel() // COUNTED)
    return blocks[::step]
