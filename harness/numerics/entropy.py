"""Entropy calibration: the clip whose rounded distribution has the least KL divergence from the true one.

For every number of lowest bins of a histogram of sizes |x|:

    P   those bins; all counts beyond are added to the last of them, because that is where they saturate
    Q   the same bins without the added counts; the counts that the grid rounds to one value are spread evenly
        over those of its bins that P fills
    KL(P ‖ Q)

This is the calibration of Migacz, "8-bit Inference with TensorRT" (GPU Technology Conference 2017). There, bins are
merged in runs of equal length; here they are merged as the grid rounds them, which for integers differs only by half a
run at either end, and works for any grid. The lowest bin gets the count of the one above it, as in Nvidia's own
toolkit: zeros, of which an activation can have any number, are exact on every grid and say nothing about the clip. On
affine grids the limits are that clip on either side, restricted to minimum and maximum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.numerics.ranges import Limits, min_max

if TYPE_CHECKING:
    from harness.numerics.formats import Format
    from harness.numerics.grids import Grid

FEWEST_VALUES = 128
MOST_BINS = 2048
CLIP_CANDIDATES = 120
"""Number of clips compared, evenly spaced from a sixteenth of the largest value up."""
PIECE_BINS = 2**20
NEXT_TO_NOTHING = 1e-4
"""Probability of an empty level, as a fraction of one value; as in MXNet's and ONNX Runtime's calibrators."""


def entropy_limits(blocks: Tensor, form: Format, present: Tensor | None = None) -> Limits:
    """The limits of every block [..., n] from its own histogram with as many bins as values, at most 2048.

    present [..., n]: which values count. Raises ValueError for blocks of fewer than 128 values, too few for a
    histogram.
    """
    fewest = blocks.shape[-1] if present is None else int(present.sum(-1).min())
    if fewest < FEWEST_VALUES:
        raise ValueError(
            f"a block has {fewest} values, and range: entropy needs at least {FEWEST_VALUES} for a histogram; "
            "use larger groups, or range: mse"
        )
    everything = min_max(blocks)
    bins = min(MOST_BINS, 2 ** (fewest.bit_length() - 1))
    largest = everything.largest
    flat, size = blocks.reshape(-1, blocks.shape[-1]), largest.reshape(-1, 1)
    two_sided = ((everything.low < 0) & (everything.high > 0)).reshape(-1)
    share = torch.empty(len(flat), dtype=torch.float64, device=flat.device)
    rows = max(1, PIECE_BINS // bins)
    for start in range(0, len(flat), rows):
        some = slice(start, start + rows)
        share[some] = clip_share(_histogram(flat[some], size[some], bins), form.grid, two_sided[some])
    return limits_at_clip(everything, share.reshape(largest.shape).to(largest.dtype) * largest, form.grid)


def limits_at_clip(everything: Limits, clip: Tensor, grid: Grid) -> Limits:
    """Limits at ±clip; on affine grids not beyond the minimum and maximum."""
    if grid.symmetric:
        return Limits(-clip, clip)
    return Limits(torch.maximum(-clip, everything.low), torch.minimum(clip, everything.high))


def clip_share(counts: Tensor, grid: Grid, two_sided: Tensor) -> Tensor:
    """The share of the range of size histograms [B, bins] to keep: [B], at most 1.

    two_sided [B]: whether a histogram contains values of both signs; otherwise an affine grid uses all its codes for
    one side.
    """
    bins = counts.shape[-1]
    counts = torch.cat([counts[:, 1:2], counts[:, 1:]], dim=1)
    best = torch.ones(len(counts), dtype=torch.float64, device=counts.device)
    least = torch.full_like(best, torch.inf)
    stride = max(1, bins // (CLIP_CANDIDATES * 16 // 15))
    for kept in range(bins, max(1, bins // 16) - 1, -stride):
        both = _divergence(counts, _levels(kept, grid, -1.0, counts.device), kept)
        if not grid.symmetric and not bool(two_sided.all()):
            one = _divergence(counts, _levels(kept, grid, 0.0, counts.device), kept)
            both = torch.where(two_sided, both, one)
        better = both < least
        least = torch.where(better, both, least)
        best = torch.where(better, kept / bins, best)
    return best


def _levels(kept: int, grid: Grid, low: float, device: torch.device) -> Tensor:
    """[kept] int64: index of the grid value to which each bin is rounded when the grid spans them."""
    centres = (torch.arange(kept, dtype=torch.float64, device=device) + 0.5) / kept
    steps = grid.steps(centres.new_tensor(low), centres.new_tensor(1.0))
    turns = grid.round(centres, steps).diff() > 0
    return torch.cat([turns.new_zeros(1, dtype=torch.int64), turns.cumsum(0)])


def _divergence(counts: Tensor, levels: Tensor, kept: int) -> Tensor:
    """KL(P ‖ Q) of histograms [B, bins] cut after ``kept`` bins, in nats: [B]."""
    inside = counts[:, :kept]
    p = inside.clone()
    p[:, -1] += counts[:, kept:].sum(-1)
    filled = p > 0
    merged = inside.new_zeros(len(counts), int(levels[-1]) + 1)
    spread_over = merged.index_add(1, levels, filled.to(merged.dtype)).clamp_(min=1)
    q = (merged.index_add(1, levels, inside) / spread_over)[:, levels]
    # If only clipped values fill the last level, Q is empty there, and clipping a single far outlier would cost
    # infinity. As in other calibrators, Q gets a tiny probability instead.
    total = inside.sum(-1)
    p, q = p / p.sum(-1, keepdim=True), q.clamp_(min=NEXT_TO_NOTHING) / total[:, None]
    divergence = torch.where(filled, p * (p.log() - q.log()), 0).sum(-1)
    return torch.where(total > 0, divergence, torch.inf)


def _histogram(x: Tensor, largest: Tensor, bins: int) -> Tensor:
    """float64 [B, bins]: histogram of |x| from 0 to ``largest`` [B, 1]. Zeros that pad short blocks fall into the
    lowest bin, whose count is not used."""
    row = torch.arange(len(x), device=x.device)[:, None] * bins
    share = x.abs().div_(torch.where(largest > 0, largest, 1))
    index = share.mul_(bins).long().clamp_(max=bins - 1).add_(row)
    return index.flatten().bincount(minlength=len(x) * bins).view(len(x), bins).double()
