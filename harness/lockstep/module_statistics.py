"""Sums over module inputs and outputs: errors per row, moments per channel. Legend: N rows, H width."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sums = tuple[Tensor, ...]
ErrorKernel = Callable[[Tensor, Tensor], Sums]
MomentKernel = Callable[[Tensor, Tensor, float], Sums]

_VALUES = 2**17
"""Values that eager kernels process at a time, so that their float32 copies stay in the CPU cache."""


def row_errors(reference_NH: Tensor, variant_NH: Tensor) -> Sums:
    """For each row, float32 [N]: sum (v-r)^2, sum r^2, sum v^2, sum r v, max |v-r|.

    The difference itself is squared, because r^2 + v^2 - 2 r v would cancel.
    """
    r, v = reference_NH.float(), variant_NH.float()
    d = v - r
    return (d * d).sum(-1), (r * r).sum(-1), (v * v).sum(-1), (r * v).sum(-1), d.abs().amax(-1)


def row_errors_in_cache(reference_NH: Tensor, variant_NH: Tensor) -> Sums:
    """``row_errors`` a few rows at a time."""
    rows = max(1, _VALUES // reference_NH.shape[-1])
    pieces = zip(torch.split(reference_NH, rows), torch.split(variant_NH, rows), strict=True)
    sums = [row_errors(r, v) for r, v in pieces]
    return tuple(torch.cat(parts) for parts in zip(*sums, strict=True))


def channel_moments(values_NH: Tensor, valid_N: Tensor, threshold: float) -> Sums:
    """For each column over the valid rows, [H]: max |x|, sum x, sum x^2, sum x^4, count |x| >= threshold.

    Values in invalid rows, including NaN, have no influence. threshold must be above 0.
    """
    x = torch.where(valid_N[:, None], values_NH.float(), 0.0)
    size, square = x.abs(), x * x
    over = (size >= threshold).to(torch.float32)
    return size.amax(0), x.sum(0), square.sum(0), (square * square).sum(0), over.sum(0)


def channel_moments_in_cache(values_NH: Tensor, valid_N: Tensor, threshold: float) -> Sums:
    """``channel_moments`` a few rows at a time, accumulated in float64."""
    rows = max(1, _VALUES // values_NH.shape[-1])
    pieces = zip(torch.split(values_NH, rows), torch.split(valid_N, rows), strict=True)
    parts = [channel_moments(x, valid, threshold) for x, valid in pieces]
    largest, *sums = (torch.stack(column) for column in zip(*parts, strict=True))
    return largest.amax(0), *(column.double().sum(0) for column in sums)
