"""Grids: which values a number format has, in units of a scale.

    integer, symmetric   s = max|x| / q_max          (restricted: q in −q_max … q_max, q_max = 2^(b−1) − 1)
                         s = max|x| / (q_max + ½)    (full: q in −q_max−1 … q_max)
    integer, affine      s = (high − low) / (2^b − 1), q in 0 … 2^b − 1, z = −round(low / s)
    float                s = max|x| / largest        (sign, exponent and fraction bits)
    codebook             s = max|x|                  (NF4: quantiles of a normal distribution, in −1 … 1)

Sources: Jacob et al. 2018 (arXiv 1712.05877) and Nagel et al. 2021 (arXiv 2106.08295) for integers; those of the
others stand beside the table of formats (``named_formats``). The range always contains 0, so that 0 is represented
exactly; else z would leave its own range and shift every value.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from types import EllipsisType
from typing import cast

import torch
from torch import Tensor

from harness.numerics.named_formats import named_formats


@dataclass(frozen=True)
class Steps:
    """The scale of every block, and where the grid has one its zero point.

    Both have the shape of the blocks, without their values. scale is 0 where a whole block is 0 (or too small
    to have a scale that is a normal number): its values become exact zeros. chosen_under: the scale under which
    codes are chosen, where scales are compressed only after that; else codes are chosen under scale itself.
    """

    scale: Tensor
    zero_point: Tensor | None = None
    chosen_under: Tensor | None = None

    def __getitem__(self, index: slice | int | EllipsisType | tuple[slice | int | EllipsisType | None, ...]) -> Steps:
        """The steps of some of the blocks."""
        zero, chosen = self.zero_point, self.chosen_under
        return Steps(
            self.scale[index], None if zero is None else zero[index], None if chosen is None else chosen[index]
        )

    @property
    def spread(self) -> Steps:
        """With an axis of length 1 at the end, to be applied to the values of blocks."""
        return self[..., None]

    @property
    def divisor(self) -> Tensor:
        """What values are divided by to choose their codes; never 0."""
        scale = self.scale if self.chosen_under is None else self.chosen_under
        return torch.where(scale > 0, scale, torch.ones_like(scale))


@dataclass(frozen=True)
class Grid(ABC):
    """The values of a number format."""

    name: str
    bits: int
    symmetric: bool

    @abstractmethod
    def steps(self, low: Tensor, high: Tensor) -> Steps:
        """The steps with which the grid spans low ≤ 0 ≤ high."""

    def round(self, x: Tensor, steps: Steps, out: Tensor | None = None) -> Tensor:
        """The nearest value of the grid to each x, which ``steps`` must broadcast with. Beyond its ends it
        saturates. ``out``, if given, receives the result; it may be x itself."""
        quotient = torch.div(x, steps.divisor, out=out)
        return self._nearest(quotient, steps.zero_point).mul_(steps.scale)

    @abstractmethod
    def _nearest(self, quotient: Tensor, zero_point: Tensor | None) -> Tensor:
        """``quotient``, changed in place into the nearest values in units of the scale, without zero point."""

    def reaches(self, quotient: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """Whether values, in units of the scale, lie within the ends of the grid, where they do not saturate."""
        return quotient.abs() <= self.largest

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest value in units of the scale, without zero point."""

    @property
    def largest_code(self) -> float:
        """q_max of LSQ (Esser et al. 2020, arXiv 1902.08153): the largest value that a code stands for."""
        return self.largest


@dataclass(frozen=True)
class Integer(Grid):
    """A uniform grid of ``bits`` bits. full_range: symmetric codes use −2^(bits−1) as well."""

    full_range: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}, expected 2 to 16")
        if self.full_range and not self.symmetric:
            raise ValueError("full_range is a choice of symmetric grids; affine grids always use all codes")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        if not self.symmetric:
            return 0, 2**self.bits - 1
        largest = 2 ** (self.bits - 1) - 1
        return (-largest - 1 if self.full_range else -largest), largest

    def steps(self, low: Tensor, high: Tensor) -> Steps:
        lowest, highest = self.code_range
        if self.symmetric:
            return Steps(_normal(torch.maximum(-low, high) / ((highest - lowest) / 2)))
        span = high - low
        # The difference of two huge numbers of opposite sign is infinite; it is divided first then.
        scale = _normal(torch.where(torch.isfinite(span), span / highest, high / highest - low / highest))
        zero = torch.round(-low / Steps(scale).divisor).clamp(lowest, highest) * (scale > 0)
        return Steps(scale, zero)

    def _nearest(self, quotient: Tensor, zero_point: Tensor | None) -> Tensor:
        if zero_point is None:
            return quotient.round_().clamp_(*self.code_range)
        # Several times as fast as clamping between bounds that differ from block to block.
        return quotient.round_().add_(zero_point).clamp_(*self.code_range).sub_(zero_point)

    def reaches(self, quotient: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """Up to half a step beyond the ends, which still rounds to them."""
        lowest, highest = self.code_range
        codes = quotient.round() if zero_point is None else quotient.round() + zero_point
        return (codes >= lowest) & (codes <= highest)

    @property
    def largest(self) -> float:
        return float(self.code_range[1])

    def codes(self, rounded: Tensor, steps: Steps) -> Tensor:
        """int32 codes of values that ``round`` gave."""
        codes = torch.round(rounded / Steps(steps.scale).divisor)
        return (codes if steps.zero_point is None else codes + steps.zero_point).to(torch.int32)


@dataclass(frozen=True)
class Float8(Grid):
    """An 8-bit float, rounded half to even as torch casts to it, saturating instead of overflowing."""

    dtype: torch.dtype
    fraction_bits: int

    @property
    def largest(self) -> float:
        return torch.finfo(self.dtype).max

    def steps(self, low: Tensor, high: Tensor) -> Steps:
        return Steps(_normal(torch.maximum(-low, high) / self.largest))

    def _nearest(self, quotient: Tensor, zero_point: Tensor | None) -> Tensor:
        quotient.clamp_(-self.largest, self.largest)
        # A number added to v whose last bit is worth the last bit of v on this grid makes the processor round v
        # there, half to even; casting to FP8 and back gives the same and takes several times as long.
        if quotient.dtype not in _LAYOUT:
            return quotient.copy_(quotient.to(self.dtype))
        pattern, exponent, precision = _LAYOUT[quotient.dtype]
        power = (quotient.view(pattern) & exponent).view(quotient.dtype)
        power.clamp_(min=torch.finfo(self.dtype).smallest_normal).mul_(1.5 * 2.0 ** (precision - self.fraction_bits))
        return quotient.add_(power).sub_(power)


@dataclass(frozen=True)
class Codebook(Grid):
    """Any ascending list of values that contains 0; ``edges`` lie between neighbours, where rounding turns.

    upper: whether a value on an edge goes to the larger neighbour, one flag for each edge.
    """

    values: tuple[float, ...]
    upper: tuple[bool, ...]

    @property
    def largest(self) -> float:
        return self.values[-1]

    def steps(self, low: Tensor, high: Tensor) -> Steps:
        return Steps(_normal(torch.maximum(-low, high) / self.values[-1]))

    def _nearest(self, quotient: Tensor, zero_point: Tensor | None) -> Tensor:
        table = _table(self, quotient.dtype, quotient.device)
        if table.cells is None:
            return quotient.copy_(table.values[torch.bucketize(quotient, table.edges)])
        cell = table.cells.of(quotient).flatten()
        beyond = quotient.flatten() > table.cells.edge.index_select(0, cell)
        value = table.cells.value.index_select(0, cell.mul_(2).add_(beyond))
        return quotient.copy_(value.view(quotient.shape))


@dataclass(frozen=True)
class _Cells:
    """Equal cells along the number line, none of which holds two edges of a codebook.

    A cell's number is two operations away where the nearest value is a search away; one comparison with the
    edge in the cell then decides. edge [C]. value [2·C]: of a cell, below and above its edge.
    """

    offset: float
    per_unit: float
    edge: Tensor
    value: Tensor

    def of(self, x: Tensor) -> Tensor:
        """int64 numbers of the cells in which the values of x lie. It never falls as x grows, however the
        operations round, and that is all it takes to find the nearest value exactly."""
        return (x + self.offset).mul_(self.per_unit).clamp_(0, len(self.edge) - 1).to(torch.int64)


@dataclass(frozen=True)
class _Table:
    """Values [K] of a codebook, the edges [K−1] between them, and cells unless the edges lie too unevenly.

    An edge that belongs to its upper neighbour was moved down by the smallest possible amount.
    """

    values: Tensor
    edges: Tensor
    cells: _Cells | None


def list_edges(grid: Codebook) -> Tensor:
    """float32 [K − 1]: what is larger than an edge goes to the neighbour above it."""
    return _table(grid, torch.float32, torch.device("cpu")).edges


MOST_CELLS = 4096
"""What a processor's fastest cache holds."""


@cache
def _table(grid: Codebook, dtype: torch.dtype, device: torch.device) -> _Table:
    values = torch.tensor(grid.values, dtype=dtype, device=device)
    edges = (values[1:] + values[:-1]) / 2
    below = torch.nextafter(edges, torch.full_like(edges, -torch.inf))
    edges = torch.where(torch.tensor(grid.upper, device=device), below, edges)
    return _Table(values, edges, _cells(values, edges))


def _cells(values: Tensor, edges: Tensor) -> _Cells | None:
    span = float(edges[-1] - edges[0])
    narrowest = float(edges.diff().min()) if len(edges) > 1 else span
    # Half as wide as the narrowest gap, so that rounding cannot bring two edges into one cell.
    count = 2 * math.ceil(span / narrowest) + 2 if narrowest > 0 else MOST_CELLS + 1
    if count > MOST_CELLS:
        return None
    cells = _Cells(-float(edges[0]), (count - 1) / span, edges.new_full((count,), torch.inf), edges)
    home = cells.of(edges)
    edge = cells.edge.index_copy(0, home, edges)
    below = torch.bucketize(torch.arange(count, device=edges.device), home)
    above = below + torch.isfinite(edge)
    return _Cells(cells.offset, cells.per_unit, edge, values[torch.stack([below, above], dim=1).flatten()])


def _normal(scale: Tensor) -> Tensor:
    """0 instead of a scale below the smallest normal number."""
    return torch.where(scale >= torch.finfo(scale.dtype).tiny, scale, torch.zeros_like(scale))


def integer(bits: int, symmetric: bool = True, full_range: bool = False) -> Integer:
    """INT2 to INT16."""
    return Integer(f"int{bits}", bits, symmetric, full_range)


_LAYOUT = {torch.float32: (torch.int32, 0xFF << 23, 23), torch.float64: (torch.int64, 0x7FF << 52, 52)}
"""Integer type of the same size, the bits of the exponent (no sign), and how many bits the fraction has."""


@cache
def grid_of(name: str) -> Grid:
    """The grid of a format of the table, which for a block format is that of its elements. Raises KeyError for others.

    Integers have no grid of their own: see `integer`.
    """
    entry = named_formats()[name]
    if entry.elements:
        return grid_of(entry.elements)
    if entry.dtype:
        return Float8(name, entry.bits or 0, True, getattr(torch, entry.dtype), entry.fraction_bits)
    if entry.values:
        return Codebook(name, entry.bits or 0, True, entry.values, (False,) * (len(entry.values) - 1))
    if entry.exponent_bits:
        return minifloat(name, entry.exponent_bits, entry.fraction_bits)
    raise KeyError(name)


def minifloat(name: str, exponent_bits: int, fraction_bits: int) -> Codebook:
    """A float of few bits without infinity and NaN, rounded half to even: the neighbour with an even code takes it.

    OCP Microscaling Formats v1.0, section 5.3: exponents are biased by 2^(e−1) − 1, and those of 0 are subnormal.
    """
    bias, steps = 2 ** (exponent_bits - 1) - 1, 2**fraction_bits
    codes = range(1, 2 ** (exponent_bits + fraction_bits))
    sizes = [
        math.ldexp(code % steps + (steps if code >= steps else 0), max(code // steps, 1) - bias - fraction_bits)
        for code in codes
    ]
    up = [code % 2 == 0 for code in codes]
    return Codebook(
        name,
        1 + exponent_bits + fraction_bits,
        True,
        (*(-size for size in reversed(sizes)), 0.0, *sizes),
        (*(not each for each in reversed(up)), *up),
    )


@cache
def dynamic_float() -> Codebook:
    """The 8-bit float with a moving boundary between exponent and fraction that QLoRA's scales are stored in.

    Decades from 1e−6 to 1, each with twice as many equal steps as the one below it, both signs, 0 and 1
    (Dettmers 2016, arXiv 1511.04561; Dettmers et al. 2022, arXiv 2110.02861).
    """
    parts = [torch.zeros(1), torch.ones(1)]
    for decade in range(7):
        ends = torch.linspace(0.1, 1, 2**decade + 1)
        middles = (ends[1:] + ends[:-1]) / 2 * 10.0 ** (decade - 6)
        parts += [middles, -middles]
    values = torch.cat(parts).sort().values.tolist()
    return Codebook("dynamic8", 8, True, tuple(values), (False,) * (len(values) - 1))


FP8_E4M3 = cast(Float8, grid_of("fp8_e4m3"))
FP8_E5M2 = cast(Float8, grid_of("fp8_e5m2"))
FP4_E2M1 = cast(Codebook, grid_of("fp4_e2m1"))
NF4 = cast(Codebook, grid_of("nf4"))
