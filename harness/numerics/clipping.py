"""MSE clipping: search for the limits with the least squared error.

The error is that of the original values, including those beyond the limits, on the grid with the scales as they are
stored. A small block has many local minima, so a coarse search covers all sizes of the limits, from somewhat beyond
the largest value (which helps where power-of-two scales would saturate it) down to a hundredth of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.numerics.ranges import Limits, min_max
from harness.numerics.scales import FLOAT

if TYPE_CHECKING:
    from harness.numerics.formats import Format

COARSE = tuple(2.0 ** (-k / 8) for k in range(-4, 56))
ONE_END = tuple(2.0 ** (-k / 8) for k in range(-4, 17) if k)
FINE = tuple(2.0 ** (k / 64) for k in range(-7, 8) if k)
PIECE_VALUES = 2**17
MARGIN = 1e-5
"""Relative improvement a candidate needs: more than the float32 rounding error of the compared sums."""


def mse_limits(blocks: Tensor, form: Format) -> Limits:
    """The limits of every block [..., n] with the least squared error found on the grid of ``form``.

    Never worse than minimum and maximum. Where the scales of blocks depend on each other, as in NVFP4 and under double
    quantization, this holds for the tensor as a whole: the best limits per block, once with its scale during the search
    and once with an exact scale, are compared on all blocks together.
    """
    everything = min_max(blocks)
    if not form.scales.separate:
        choices = [
            everything,
            *(search_limits(blocks, everything, each) for each in (form, replace(form, scales=FLOAT))),
        ]
        unit = everything.largest.max()
        totals = torch.stack([_errors(blocks, limits, form, unit).double().sum() for limits in choices])
        return choices[int(totals.argmin())]
    rows = max(1, PIECE_VALUES // blocks[0].numel())
    low, high = torch.empty_like(everything.low), torch.empty_like(everything.high)
    for start in range(0, len(blocks), rows):
        some = slice(start, start + rows)
        limits = search_limits(blocks[some], Limits(everything.low[some], everything.high[some]), form)
        low[some], high[some] = limits.low, limits.high
    return Limits(low, high)


def search_limits(blocks: Tensor, everything: Limits, form: Format, weights: Tensor | None = None) -> Limits:
    """The best limits found for every block. everything: minimum and maximum of its values. weights [..., n]: how
    often each value occurs."""
    trial = _BestLimits(blocks, everything, form, weights)
    for factor in COARSE:
        trial.try_scaled(everything, factor, factor)
    if not form.grid.symmetric:
        for ends in ((1, 0), (0, 1)) * 2:
            start = trial.best
            for factor in ONE_END:
                trial.try_scaled(start, *(factor**end for end in ends))
    for ends in ((1, 1),) if form.grid.symmetric else ((1, 0), (0, 1)):
        start = trial.best
        for factor in FINE:
            trial.try_scaled(start, *(factor**end for end in ends))
    return trial.best


class _BestLimits:
    """The best limits of every block so far."""

    def __init__(self, blocks: Tensor, everything: Limits, form: Format, weights: Tensor | None) -> None:
        self.best = everything
        self._blocks, self._form, self._weights = blocks, form, weights
        self._unit = everything.largest
        self._ceiling = torch.full_like(self._unit, torch.finfo(blocks.dtype).max)
        self._kept = torch.zeros_like(self._unit, dtype=torch.bool)
        if not form.scales.separate:
            # The block with the largest scale sets the scale of the scales, which must not move during the search.
            self._ceiling = self._unit.max().expand_as(self._unit)
            self._kept = self._unit == self._ceiling
        self._least = _errors(blocks, everything, form, self._unit, weights)

    def try_scaled(self, limits: Limits, low: float, high: float) -> None:
        """Keep ``limits`` times the factors ``low`` and ``high`` for the blocks where they have less error."""
        tried = Limits(
            torch.where(self._kept, self.best.low, torch.maximum(limits.low * low, -self._ceiling)),
            torch.where(self._kept, self.best.high, torch.minimum(limits.high * high, self._ceiling)),
        )
        error = _errors(self._blocks, tried, self._form, self._unit, self._weights)
        better = error < self._least * (1 - MARGIN)
        self._least = torch.where(better, error, self._least)
        self.best = Limits(
            torch.where(better, tried.low, self.best.low), torch.where(better, tried.high, self.best.high)
        )


def _errors(blocks: Tensor, limits: Limits, form: Format, unit: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared error of every block, divided by a power of two near ``unit``² to avoid overflow."""
    rounded = form.grid.round(blocks, form.scales.steps(form.grid, limits).spread)
    difference = rounded.sub_(blocks)
    shrink = torch.ldexp(torch.ones_like(unit), -torch.frexp(unit).exponent.clamp(-126, 126))
    difference.mul_(shrink[..., None])
    squares = difference.square_()
    return (squares if weights is None else squares.mul_(weights)).sum(-1)
