"""Grids: which values a number format has, in units of a scale.

    integer, symmetric   s = max|x| / q_max          (restricted: q in −q_max … q_max, q_max = 2^(b−1) − 1)
                         s = max|x| / (q_max + ½)    (full: q in −q_max−1 … q_max)
    integer, affine      s = (high − low) / (2^b − 1), q in 0 … 2^b − 1, z = −round(low / s)
    float                s = max|x| / largest        (sign, exponent and fraction bits)
    codebook             s = max|x|                  (NF4: quantiles of a normal distribution, in −1 … 1)

Sources: Jacob et al. 2018 (arXiv 1712.05877) and Nagel et al. 2021 (arXiv 2106.08295) for integers; Micikevicius
et al. 2022 (arXiv 2209.05433) for FP8; OCP Microscaling Formats v1.0 for E2M1; Dettmers et al. 2023 (arXiv
2305.14314) for NF4. The range always contains 0, so that 0 is represented exactly; else z would leave its own
range and shift every value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """The scale of every block, and where the grid has one its zero point.

    Both have the shape of the blocks, without their values. scale is 0 where a whole block is 0 (or too small
    to have a scale that is a normal number): its values become exact zeros.
    """

    scale: Tensor
    zero_point: Tensor | None = None

    def __getitem__(self, index: slice | int) -> Steps:
        """The steps of some of the blocks, along the first axis."""
        return Steps(self.scale[index], None if self.zero_point is None else self.zero_point[index])

    @property
    def spread(self) -> Steps:
        """With an axis of length 1 at the end, to be applied to the values of blocks."""
        zero = self.zero_point
        return Steps(self.scale[..., None], None if zero is None else zero[..., None])


@dataclass(frozen=True)
class Grid(ABC):
    """The values of a number format."""

    name: str
    bits: int
    symmetric: bool

    @abstractmethod
    def steps(self, low: Tensor, high: Tensor) -> Steps:
        """The steps with which the grid spans low ≤ 0 ≤ high."""

    @abstractmethod
    def round(self, x: Tensor, steps: Steps) -> Tensor:
        """The nearest value of the grid to each x, which ``steps`` must broadcast with. Beyond its ends it
        saturates."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest value in units of the scale, without zero point."""


@dataclass(frozen=True)
class Integer(Grid):
    """A uniform grid of ``bits`` bits. full_range: symmetric codes use −2^(bits−1) as well."""

    full_range: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}, wanted 2 to 16")
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
        # Divided first: the difference of two huge numbers of opposite sign would be infinite.
        scale = _normal(high / highest - low / highest)
        zero = torch.round(-low / _divisor(scale)).clamp(lowest, highest) * (scale > 0)
        return Steps(scale, zero)

    def round(self, x: Tensor, steps: Steps) -> Tensor:
        lowest, highest = self.code_range
        rounded = torch.div(x, _divisor(steps.scale)).round_()
        if steps.zero_point is None:
            rounded.clamp_(lowest, highest)
        else:
            rounded.clamp_(lowest - steps.zero_point, highest - steps.zero_point)
        return rounded.mul_(steps.scale)

    @property
    def largest(self) -> float:
        return float(self.code_range[1])

    def codes(self, rounded: Tensor, steps: Steps) -> Tensor:
        """int32 codes of values that ``round`` gave."""
        codes = torch.round(rounded / _divisor(steps.scale))
        return (codes if steps.zero_point is None else codes + steps.zero_point).to(torch.int32)


@dataclass(frozen=True)
class Float8(Grid):
    """An 8-bit float, rounded half to even by torch's own cast, saturating instead of overflowing."""

    dtype: torch.dtype

    @property
    def largest(self) -> float:
        return torch.finfo(self.dtype).max

    def steps(self, low: Tensor, high: Tensor) -> Steps:
        return Steps(_normal(torch.maximum(-low, high) / self.largest))

    def round(self, x: Tensor, steps: Steps) -> Tensor:
        scaled = torch.div(x, _divisor(steps.scale)).clamp_(-self.largest, self.largest)
        return scaled.to(self.dtype).to(x.dtype).mul_(steps.scale)


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

    def round(self, x: Tensor, steps: Steps) -> Tensor:
        values, edges = _table(self, x.dtype, x.device)
        # An edge that belongs to the upper neighbour was moved down by the smallest possible amount.
        index = torch.bucketize(torch.div(x, _divisor(steps.scale)), edges)
        return values[index].mul_(steps.scale)


@cache
def _table(grid: Codebook, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.tensor(grid.values, dtype=dtype, device=device)
    edges = (values[1:] + values[:-1]) / 2
    below = torch.nextafter(edges, torch.full_like(edges, -torch.inf))
    return values, torch.where(torch.tensor(grid.upper, device=device), below, edges)


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _normal(scale: Tensor) -> Tensor:
    """0 instead of a scale below the smallest normal number."""
    return torch.where(scale >= torch.finfo(scale.dtype).tiny, scale, torch.zeros_like(scale))


def integer(bits: int, symmetric: bool = True, full_range: bool = False) -> Integer:
    """INT2 to INT16."""
    return Integer(f"int{bits}", bits, symmetric, full_range)


FP8_E4M3 = Float8("fp8_e4m3", 8, True, torch.float8_e4m3fn)
FP8_E5M2 = Float8("fp8_e5m2", 8, True, torch.float8_e5m2)

_E2M1 = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Half to even: the neighbour whose fraction bit is 0 (0, 1, 2, 4 in size) takes the edge.
_E2M1_UP = (False, True, False, True, False, True, False)
FP4_E2M1 = Codebook(
    "fp4_e2m1",
    4,
    True,
    (*(-v for v in reversed(_E2M1)), 0.0, *_E2M1),
    (*(not up for up in reversed(_E2M1_UP)), *_E2M1_UP),
)
# Quantiles of a normal distribution as the QLoRA paper lists them (appendix E).
NF4 = Codebook(
    "nf4",
    4,
    True,
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    (False,) * 15,
)
