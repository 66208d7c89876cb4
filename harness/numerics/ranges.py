"""Limits: what the grid of a block has to span. Blocks are [..., n], limits [...]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Limits:
    """What the grid of every block has to span: low ≤ 0 ≤ high."""

    low: Tensor
    high: Tensor

    @property
    def largest(self) -> Tensor:
        """The limit that is farther from 0, as a size."""
        return torch.maximum(-self.low, self.high)


def min_max(blocks: Tensor) -> Limits:
    """Smallest and largest value of every block, widened to contain 0."""
    # Two passes of reductions that are vectorised take a fraction of the time of one that is not.
    return Limits(low=blocks.amin(dim=-1).clamp_(max=0), high=blocks.amax(dim=-1).clamp_(min=0))


def percentile_limits(blocks: Tensor, percentile: float, symmetric: bool, present: Tensor | None = None) -> Limits:
    """Limits within which ``percentile`` percent of the values of every block lie.

    symmetric: of the sizes of the values; else as many are cut at either end. Between two values the limit is
    interpolated linearly. present [..., n]: which values count. A block of which this would leave nothing but
    zeros, though it has other values, keeps its minimum and maximum. Raises ValueError for a percentile outside
    (0, 100].
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}, expected more than 0 and at most 100")
    everything = min_max(blocks)
    if symmetric:
        clip = _quantile(blocks.abs(), percentile / 100, present)
        found = Limits(-clip, clip)
    else:
        beyond = (1 - percentile / 100) / 2
        found = Limits(
            -_quantile(-blocks, 1 - beyond, present).clamp_(min=0), _quantile(blocks, 1 - beyond, present).clamp_(min=0)
        )
    nothing = found.largest == 0
    return Limits(torch.where(nothing, everything.low, found.low), torch.where(nothing, everything.high, found.high))


def _quantile(x: Tensor, share: float, present: Tensor | None) -> Tensor:
    """The value below which ``share`` of the values along the last axis lie, interpolated linearly."""
    if present is None:
        last = torch.full(x.shape[:-1], x.shape[-1] - 1, device=x.device)
    else:
        x, last = x.masked_fill(~present, torch.inf), present.sum(-1) - 1
    position = last.double() * share
    below = position.floor().long()
    above = torch.minimum(below + 1, last)
    ordered = x.sort(dim=-1).values
    ends = ordered.gather(-1, torch.stack([below, above], dim=-1))
    return torch.lerp(ends[..., 0], ends[..., 1], (position - below).to(x.dtype))
