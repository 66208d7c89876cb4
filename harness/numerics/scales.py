"""How scales are stored: as they are, as powers of two, as FP8 under one scale of the tensor, or quantized again.

    float   16 bits each in the count; kept in full precision here
    e8m0    a power of two, 8 bits (OCP Microscaling Formats v1.0: 2^(floor(log2 max|x|) − exponent of the largest
            element value))
    e4m3    FP8 E4M3, 8 bits, under one float32 scale of the tensor (NVFP4)
    double  8 bits under a second scale for every 256 of them, after their mean is taken off (QLoRA, Dettmers et al.
            2023, arXiv 2305.14314, section 3)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from harness.numerics.blocks import Blocks
from harness.numerics.grids import FP8_E4M3, Grid, Steps, integer
from harness.numerics.ranges import Limits


@dataclass(frozen=True)
class ScaleFormat(ABC):
    """A way to store scales."""

    kind: str

    @abstractmethod
    def steps(self, grid: Grid, limits: Limits) -> Steps:
        """The steps with which ``grid`` spans ``limits``, as this format stores them. limits: of a whole tensor."""

    @abstractmethod
    def stored_bits(self, count: int) -> int:
        """Bits that this many scales take."""

    def rename(self, grid: str) -> str:
        """What a grid is called with such scales."""
        return grid


@dataclass(frozen=True)
class FloatScales(ScaleFormat):
    """Scales as they are, counted as 16 bits."""

    def steps(self, grid: Grid, limits: Limits) -> Steps:
        return grid.steps(limits.low, limits.high)

    def stored_bits(self, count: int) -> int:
        return 16 * count


@dataclass(frozen=True)
class PowerScales(ScaleFormat):
    """E8M0: powers of two. The largest values of a block may saturate."""

    def steps(self, grid: Grid, limits: Limits) -> Steps:
        largest = torch.maximum(-limits.low, limits.high)
        # frexp is exact: largest = mantissa · 2^exponent with mantissa in [½, 1), so floor(log2) = exponent − 1.
        exponent = torch.frexp(largest).exponent - 1 - math.frexp(grid.largest)[1] + 1
        scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(-127, 127))
        return Steps(torch.where(largest > 0, scale, torch.zeros_like(scale)))

    def stored_bits(self, count: int) -> int:
        return 8 * count

    def rename(self, grid: str) -> str:
        return "mx" + grid.split("_")[0] + ("" if grid == "fp4_e2m1" else "_" + grid.split("_")[1])


@dataclass(frozen=True)
class Float8Scales(ScaleFormat):
    """E4M3 under one float32 scale of the tensor, chosen so that the largest block scale is 448."""

    def steps(self, grid: Grid, limits: Limits) -> Steps:
        exact = torch.maximum(-limits.low, limits.high) / grid.largest
        whole = exact.max() / FP8_E4M3.largest
        if not whole > 0:
            return Steps(torch.zeros_like(exact))
        return Steps(FP8_E4M3.round(exact, Steps(whole)))

    def stored_bits(self, count: int) -> int:
        return 8 * count + 32

    def rename(self, grid: str) -> str:
        return "nv" + grid.split("_")[0]


@dataclass(frozen=True)
class DoubleScales(ScaleFormat):
    """8 bits under a float32 scale for every 256 scales, and a float32 mean of all."""

    size: int = 256

    def steps(self, grid: Grid, limits: Limits) -> Steps:
        steps = grid.steps(limits.low, limits.high)
        flat = steps.scale.flatten()
        mean = flat.mean()
        blocks = Blocks("group", self.size)
        centred = blocks.split((flat - mean)[None])
        codes = integer(8)
        again = codes.round(centred, codes.steps(*centred.aminmax(dim=-1)).spread)
        scale = (blocks.join(again, (1, len(flat)))[0] + mean).clamp(min=0).reshape(steps.scale.shape)
        return Steps(torch.where(steps.scale > 0, scale, steps.scale), steps.zero_point)

    def stored_bits(self, count: int) -> int:
        return 8 * count + 32 * -(-count // self.size) + 32


FLOAT = FloatScales("float")
E8M0 = PowerScales("e8m0")
E4M3 = Float8Scales("e4m3")
DOUBLE = DoubleScales("double")
