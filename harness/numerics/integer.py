"""Uniform integer grids: symmetric and affine, one scale per tensor, per row, or per group of a row.

Shape suffixes: O rows (output channels) · I columns (input dimension) · G groups of a row.

    symmetric, restricted   s = max|x| / q_max            q in −q_max … q_max          q_max = 2^(b−1) − 1
    symmetric, full         s = max|x| / (q_max + ½)      q in −q_max−1 … q_max
    affine                  s = (high − low) / (2^b − 1)  q in 0 … 2^b − 1              z = −round(low / s)

    q = clip(round(x/s) + z)        x̂ = s·(q − z)

The formulas are those of Jacob et al. 2018 (arXiv 1712.05877) and Nagel et al. 2021 (arXiv 2106.08295).
Rounding is half to even (``torch.round``). The range always contains 0, so that 0 is represented exactly;
else z would leave its own range and shift every value. Scales keep the precision in which the weight is
computed (float32, or float64 for float64 weights): storing them in 16 bits, as ``stored_bits`` counts them,
is not simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Granularity = Literal["tensor", "channel", "group"]


@dataclass(frozen=True)
class Scheme:
    """An integer grid and what shares one scale.

    bits: 2 to 16. granularity: one scale per tensor, per row (axis 0), or per ``group_size`` neighbours along
    the input dimension (axis 1, the last group may be shorter). full_range: symmetric codes use −2^(b−1) as
    well.
    """

    bits: int
    symmetric: bool = True
    granularity: Granularity = "tensor"
    group_size: int | None = None
    full_range: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}, wanted 2 to 16")
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("group_size belongs to granularity 'group', and only to it")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}, wanted at least 1")
        if self.full_range and not self.symmetric:
            raise ValueError("full_range is a choice of symmetric grids; affine grids always use all codes")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        if not self.symmetric:
            return 0, 2**self.bits - 1
        largest = 2 ** (self.bits - 1) - 1
        return (-largest - 1 if self.full_range else -largest), largest


@dataclass(frozen=True)
class Quantized:
    """Integer codes with their scales.

    codes: int32, the shape of the weight. scale: float32 or float64, [1, 1], [O, 1] or [O, G]; 0 where a
    whole group is 0. zero_point: int32 like scale, None on symmetric grids.
    """

    scheme: Scheme
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None


@dataclass(frozen=True)
class Range:
    """What the grid has to span: low ≤ 0 ≤ high, each [1, 1], [O, 1] or [O, G]."""

    low: Tensor
    high: Tensor


def min_max(weight: Tensor, scheme: Scheme) -> Range:
    """Smallest and largest value of every group, widened to contain 0.

    weight: [O, I], or any shape for granularity ``tensor``. Raises ValueError for another shape, an empty
    tensor, a type that is not floating, and values that are not finite.
    """
    return _min_max(_grouped(_checked(weight, scheme), scheme))


def quantize(weight: Tensor, scheme: Scheme, limits: Range | None = None) -> Quantized:
    """Codes of ``weight`` on the grid that spans ``limits`` (by default its own minimum and maximum).

    weight: [O, I], or any shape for granularity ``tensor``; computed in float32 (float64 stays). Values
    beyond ``limits`` saturate. Groups whose scale would be below the smallest normal number become exact
    zeros. Raises ValueError as ``min_max`` does, and for limits that leave 0 out.
    """
    grouped = _grouped(_checked(weight, scheme), scheme)
    limits = limits or _min_max(grouped)
    if bool((limits.low > 0).any() | (limits.high < 0).any()):
        raise ValueError("limits leave 0 out, so 0 would have no code")
    lowest, highest = scheme.code_range
    scale = _scale(limits, scheme)
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = (
        None if scheme.symmetric else torch.round(-limits.low / divisor).clamp(lowest, highest) * (scale > 0)
    )
    codes = torch.round(grouped / divisor[..., None])
    if zero_point is not None:
        codes = codes + zero_point[..., None]
    # A group without scale holds only zeros (or next to nothing): its code must be the one that stands for 0.
    codes = codes.clamp(lowest, highest) * (scale > 0)[..., None]
    return Quantized(
        scheme=scheme,
        codes=_ungrouped(codes, weight.shape).to(torch.int32),
        scale=scale,
        zero_point=None if zero_point is None else zero_point.to(torch.int32),
    )


def dequantize(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """The values that the codes stand for, in ``dtype``, the shape of the codes.

    A value that rounding has carried past the largest number of ``dtype`` becomes that number instead of
    infinity.
    """
    codes = _grouped(quantized.codes, quantized.scheme)
    if quantized.zero_point is not None:
        codes = codes - quantized.zero_point[..., None]
    values = codes * quantized.scale[..., None]
    largest = torch.finfo(dtype).max
    return _ungrouped(values.clamp(-largest, largest), quantized.codes.shape).to(dtype)


def scales(shape: tuple[int, ...], scheme: Scheme) -> int:
    """How many scales a weight of this shape has."""
    if scheme.granularity == "tensor":
        return 1
    return shape[0] * -(-shape[1] // (scheme.group_size or shape[1]))


def stored_bits(shape: tuple[int, ...], scheme: Scheme, scale_bits: int = 16) -> int:
    """Bits that a weight of this shape takes: ``bits`` a code, ``scale_bits`` a scale, ``bits`` a zero
    point."""
    per_scale = scale_bits + (0 if scheme.symmetric else scheme.bits)
    return prod(shape) * scheme.bits + scales(shape, scheme) * per_scale


def _checked(weight: Tensor, scheme: Scheme) -> Tensor:
    if not weight.is_floating_point():
        raise ValueError(f"weight is {weight.dtype}, wanted a floating type")
    if weight.numel() == 0 or (scheme.granularity != "tensor" and weight.ndim != 2):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, wanted [O, I] for granularity {scheme.granularity}"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight holds NaN or infinity")
    return weight if weight.dtype == torch.float64 else weight.float()


def _min_max(grouped: Tensor) -> Range:
    return Range(low=grouped.amin(-1).clamp(max=0), high=grouped.amax(-1).clamp(min=0))


def _grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    """[O, G, group size]: what shares a scale lies along the last axis. A short last group is filled with
    zeros."""
    if scheme.granularity == "tensor":
        return weight.reshape(1, 1, -1)
    if scheme.group_size is None:
        return weight[:, None, :]
    missing = -weight.shape[1] % scheme.group_size
    padded = functional.pad(weight, (0, missing)) if missing else weight
    return padded.reshape(weight.shape[0], -1, scheme.group_size)


def _ungrouped(grouped: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of ``_grouped``."""
    if grouped.numel() == shape.numel():
        return grouped.reshape(shape)
    return grouped.reshape(shape[0], -1)[:, : shape[1]]


def _scale(limits: Range, scheme: Scheme) -> Tensor:
    lowest, highest = scheme.code_range
    if scheme.symmetric:
        scale = torch.maximum(-limits.low, limits.high) / ((highest - lowest) / 2)
    else:
        # Divided first: the difference of two huge numbers of opposite sign would be infinite.
        scale = limits.high / highest - limits.low / highest
    smallest = torch.finfo(scale.dtype).tiny
    return torch.where(scale >= smallest, scale, torch.zeros_like(scale))
