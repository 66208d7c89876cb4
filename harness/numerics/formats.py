"""Formats: a grid, what shares a scale, and how the scales themselves are stored.

    x ─ blocks.split ─▶ limits ─▶ steps ─▶ stored steps ─ grid.round ─▶ blocks.join ─▶ x̂

Scales of kind ``float`` keep the precision in which the tensor is computed (float32, or float64 for float64
tensors): storing them in 16 bits, as ``stored_bits`` counts them, is not simulated. The other kinds are.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from harness.numerics.granularity import Blocks
from harness.numerics.grids import Grid, Steps, grid_of, integer
from harness.numerics.named_formats import INTEGER_BITS, NamedFormat, named_formats
from harness.numerics.ranges import Limits, min_max
from harness.numerics.scales import BY_KIND, FLOAT, ScaleFormat
from harness.records import NumberFormat

CHUNK_VALUES = 2**17
"""Values that a core rounds at a time: what its cache holds together with their temporaries."""


@dataclass(frozen=True)
class Format:
    """A number format for tensors."""

    grid: Grid
    blocks: Blocks
    scales: ScaleFormat = FLOAT

    @property
    def name(self) -> str:
        """What the field calls it: a block format where elements and scales are those of one, else the grid."""
        same = (each.name for each in named_formats().values() if self._is_elements_of(each))
        return next(same, self.grid.name)

    def _is_elements_of(self, entry: NamedFormat) -> bool:
        return bool(entry.elements) and (entry.elements, entry.scales) == (self.grid.name, self.scales.kind)


@dataclass(frozen=True)
class Quantized:
    """A tensor on its grid.

    values: what the codes stand for, in the shape of the tensor, in float32 (float64 stays). steps: of every
    block, in the shape that ``blocks.split`` gives without its last axis.
    """

    values: Tensor
    steps: Steps


def format_of(record: NumberFormat, full_range: bool = False) -> Format:
    """How tensors are put into a format that a record describes. full_range: of symmetric integers.

    Raises KeyError for formats that are neither integers nor in the table.
    """
    return Format(_grid(record, full_range), blocks_of(record), BY_KIND[record.scales or "float"])


def blocks_of(record: NumberFormat) -> Blocks:
    """What shares a scale; the whole tensor where that is not known. Raises ValueError for parts of a KV cache."""
    kind = record.granularity
    if kind == "head":
        raise ValueError("a scale per token and head belongs to a KV cache, not to a tensor alone")
    return Blocks("tensor") if kind == "none" else Blocks(kind, record.group_size)


def known_grid(record: NumberFormat) -> Grid | None:
    """A grid that has every value of a format, all codes of integers included; None for one that is not known here."""
    if record.type == "int":
        return _grid(record, bool(record.symmetric)) if not record.element and record.bits in INTEGER_BITS else None
    return grid_of(record.element) if record.element in named_formats() else None


def _grid(record: NumberFormat, full_range: bool) -> Grid:
    if record.type == "int" and record.bits is not None:
        return integer(record.bits, bool(record.symmetric), full_range)
    return grid_of(record.element)


MXFP4 = format_of(named_formats()["mxfp4"].record())
MXFP8_E4M3 = format_of(named_formats()["mxfp8_e4m3"].record())
MXFP8_E5M2 = format_of(named_formats()["mxfp8_e5m2"].record())
NVFP4 = format_of(named_formats()["nvfp4"].record())


def quantize(x: Tensor, form: Format, limits: Limits | None = None) -> Quantized:
    """``x`` on the grid that spans ``limits`` (by default the minimum and maximum of every block).

    Computed in float32 (float64 stays). Values beyond ``limits`` saturate. Raises ValueError for a shape that
    cannot be taken apart, an empty tensor, a type that is not floating, values that are not finite, and limits
    that leave 0 out.
    """
    x = check_tensor(x)
    blocks = form.blocks.split(x)
    steps = block_steps(blocks, form, limits)
    return Quantized(form.blocks.join(_round(blocks, steps.spread, form.grid), tuple(x.shape)), steps)


def _round(blocks: Tensor, steps: Steps, grid: Grid) -> Tensor:
    """Like ``grid.round``, in pieces that stay in the cache of a core."""
    if blocks.ndim == 1:
        return grid.round(blocks, steps)
    rounded = torch.empty_like(blocks, memory_format=torch.contiguous_format)
    piece = CHUNK_VALUES * (torch.get_num_threads() if blocks.is_cpu else blocks.numel())
    width = min(blocks.shape[-1], piece)
    rows = max(1, piece // (blocks[0].numel() // blocks.shape[-1] * width))
    for start in range(0, len(blocks), rows):
        some = slice(start, start + rows)
        for left in range(0, blocks.shape[-1], width):
            columns = slice(left, left + width)
            grid.round(blocks[some, ..., columns], steps[some], out=rounded[some, ..., columns])
    return rounded


def block_steps(blocks: Tensor, form: Format, limits: Limits | None = None) -> Steps:
    """The steps of blocks [..., n], as the format stores them."""
    limits = limits or min_max(blocks)
    if bool((limits.low > 0).any() | (limits.high < 0).any()):
        raise ValueError("limits leave 0 out, so 0 would have no code")
    return form.scales.steps(form.grid, limits)


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``.

    What rounding has carried past the largest number of ``dtype`` becomes that number instead of infinity.
    """
    largest = torch.finfo(dtype).max
    low, high = values.aminmax()
    return (values.clamp(-largest, largest) if max(-low, high) > largest else values).to(dtype)


def stored_bits(shape: tuple[int, ...], form: Format) -> int:
    """Bits that a tensor of this shape takes: codes, scales and, on affine grids, zero points of ``bits``
    bits."""
    blocks = form.blocks.count(shape)
    zero_points = 0 if form.grid.symmetric else blocks * form.grid.bits
    return prod(shape) * form.grid.bits + form.scales.stored_bits(blocks) + zero_points


def is_finite(x: Tensor) -> bool:
    """Whether floats hold neither NaN nor infinity."""
    # The extremes of values among which NaN is are NaN; many times as fast as a flag for every value.
    return not x.numel() or bool(torch.isfinite(torch.stack(x.aminmax())).all())


def check_tensor(x: Tensor) -> Tensor:
    """``x`` in the precision it is computed in, without its gradient. Raises ValueError for what has no place on
    any grid."""
    if not x.is_floating_point():
        raise ValueError(f"it is {x.dtype}, expected a floating type")
    if x.numel() == 0:
        raise ValueError(f"it has shape {tuple(x.shape)} and no values")
    if not is_finite(x):
        raise ValueError("it holds NaN or infinity")
    x = x.detach()
    return x if x.dtype == torch.float64 else x.float()
