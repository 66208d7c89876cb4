"""How scales are stored: as they are, as powers of two, as FP8 under one scale of the tensor, or quantized again.

float   16 bits each in the count; kept in full precision here
e8m0    a power of two, 8 bits (OCP Microscaling Formats v1.0: 2^(floor(log2 max|x|) − exponent of the largest
        element value))
e4m3    FP8 E4M3, 8 bits, under one float32 scale of the tensor (NVFP4: Nvidia 2025, arXiv 2509.25149)
double  an 8-bit float under a second scale for every 256 of them, after their mean is taken off (QLoRA, Dettmers
        et al. 2023, arXiv 2305.14314, section 3)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from harness.numerics.granularity import Blocks
from harness.numerics.grids import FP8_E4M3, Grid, Steps, dynamic_float
from harness.numerics.named_formats import WHOLE_TENSOR_SCALES
from harness.numerics.ranges import Limits


@dataclass(frozen=True)
class ScaleFormat(ABC):
    """A way to store scales."""

    kind: str

    @property
    def separate(self) -> bool:
        """Whether the stored scale of a block depends on that block alone."""
        return self.kind not in WHOLE_TENSOR_SCALES

    @abstractmethod
    def steps(self, grid: Grid, limits: Limits) -> Steps:
        """The steps with which ``grid`` spans ``limits``, as this format stores them. limits: of a whole tensor."""

    @abstractmethod
    def stored_bits(self, count: int) -> int:
        """Bits that this many scales take."""


@dataclass(frozen=True)
class FloatScales(ScaleFormat):
    """Scales as they are, counted as 16 bits."""

    def steps(self, grid: Grid, limits: Limits) -> Steps:
        return grid.steps(limits.low, limits.high)

    def stored_bits(self, count: int) -> int:
        return 16 * count


@dataclass(frozen=True)
class PowerScales(ScaleFormat):
    """E8M0: powers of two, 2^−127 to 2^127. The largest values of a block may saturate."""

    def steps(self, grid: Grid, limits: Limits) -> Steps:
        largest = torch.maximum(-limits.low, limits.high)
        # frexp is exact: largest = mantissa · 2^exponent with mantissa in [½, 1), so floor(log2) = exponent − 1, and
        # the −1 of both logarithms cancels.
        exponent = torch.frexp(largest).exponent - math.frexp(grid.largest)[1]
        scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(-127, 127))
        return Steps(torch.where(largest > 0, scale, torch.zeros_like(scale)))

    def stored_bits(self, count: int) -> int:
        return 8 * count


@dataclass(frozen=True)
class Float8Scales(ScaleFormat):
    """E4M3 under one float32 scale of the tensor, chosen so that the largest block scale is 448.

    A block that is not 0 has at least the smallest scale above 0, 2^−9; then every value of it still finds a
    neighbour nearer than 0 where there is one.
    """

    def steps(self, grid: Grid, limits: Limits) -> Steps:
        largest = torch.maximum(-limits.low, limits.high)
        whole = largest.max() / (FP8_E4M3.largest * grid.largest)
        if whole < torch.finfo(largest.dtype).tiny:
            return Steps(torch.zeros_like(largest))
        relative = FP8_E4M3.round(largest / grid.largest / whole, Steps(torch.ones_like(whole)))
        return Steps(relative.clamp_(min=2.0**-9).mul_(whole).mul_(largest > 0))

    def stored_bits(self, count: int) -> int:
        return 8 * count + 32


@dataclass(frozen=True)
class DoubleScales(ScaleFormat):
    """8 bits under a float32 scale for every 256 scales, and a float32 mean of all.

    The paper says 8-bit floats without saying which; these are those of the authors' own code, the dynamic
    float of earlier work of theirs (``grids.dynamic_float``). As there, scales are compressed last: codes are
    chosen under the exact scales, values come back under the compressed ones. A scale that comes back
    negative, which a block far below the average can meet, is 0 here. Blocks of 0 stay 0.
    """

    size: int = 256

    def steps(self, grid: Grid, limits: Limits) -> Steps:
        exact = grid.steps(limits.low, limits.high)
        # Times a power of two, which changes nothing but keeps the sum of huge scales finite.
        exponent = torch.frexp(exact.scale.max()).exponent.clamp(-126, 126)
        flat = torch.ldexp(exact.scale, -exponent).flatten()
        mean = flat.mean()
        blocks = Blocks("group", self.size)
        centred = blocks.split((flat - mean)[None])
        low, high = centred.aminmax(dim=-1)
        codes = dynamic_float()
        again = codes.round(centred, codes.steps(low, high).spread)
        stored = torch.ldexp(blocks.join(again, (1, len(flat)))[0] + mean, exponent)
        scale = stored.clamp(0, torch.finfo(stored.dtype).max).reshape(exact.scale.shape)
        return Steps(torch.where(exact.scale > 0, scale, 0), exact.zero_point, chosen_under=exact.scale)

    def stored_bits(self, count: int) -> int:
        return 8 * count + 32 * -(-count // self.size) + 32


FLOAT = FloatScales("float")
E8M0 = PowerScales("e8m0")
E4M3 = Float8Scales("e4m3")
DOUBLE = DoubleScales("double")
BY_KIND: Mapping[str, ScaleFormat] = {each.kind: each for each in (FLOAT, E8M0, E4M3, DOUBLE)}
