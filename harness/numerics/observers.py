"""Observers: the limits of activations, from one pass in which nothing is kept but extremes or a histogram.

observed = observer("percentile", 99.9, Blocks("tensor"))
for x_NI in batches:
    observed.add(x_NI)
limits = observed.limits(form)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from harness.numerics.clipping import search
from harness.numerics.entropy import FEWEST_VALUES, clip_share, within
from harness.numerics.formats import Format, checked
from harness.numerics.granularity import Blocks
from harness.numerics.ranges import Limits

SIDE = 4096
"""Bins on either side of 0. Their range is at most twice the largest value, so at least half of a side is used."""


class Observer(ABC):
    """Sees tensors one after the other and then says what a grid has to span."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks

    @abstractmethod
    def add(self, x_NI: Tensor) -> None:
        """Take in activations [..., I]; ValueError for NaN and infinity, other types and empty tensors."""

    @abstractmethod
    def limits(self, form: Format) -> Limits:
        """The limits for ``form``: [1] for a tensor, [I] for channels.

        Raises ValueError where nothing was observed, and for a form with other blocks than were observed.
        """

    def _check(self, form: Format, seen: bool) -> None:
        if form.blocks.kind != self.blocks.kind:
            raise ValueError(f"limits were observed by {self.blocks.kind}, wanted by {form.blocks.kind}")
        if not seen:
            raise ValueError("no activations were observed, so they have no limits")


class MinMax(Observer):
    """Extremes, of everything or of every channel of the last axis."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__(blocks)
        self._limits: Limits | None = None

    def add(self, x_NI: Tensor) -> None:
        x = checked(x_NI)
        x = x.reshape(-1, x.shape[-1] if self.blocks.kind == "channel" else 1)
        low, high = x.amin(0).clamp_(max=0), x.amax(0).clamp_(min=0)
        if self._limits is not None:
            low, high = torch.minimum(low, self._limits.low), torch.maximum(high, self._limits.high)
        self._limits = Limits(low, high)

    def limits(self, form: Format) -> Limits:
        self._check(form, self._limits is not None)
        assert self._limits is not None  # noqa: S101 - _check saw to it
        return self._limits


class Histogram(Observer):
    """Counts of everything that was seen, in equal bins over a range that grows with it.

    Range and bins are powers of two of each other, and growing merges whole bins. So no count is lost, and the
    histogram is the same whatever the order in which values arrive.
    """

    def __init__(self) -> None:
        super().__init__(Blocks("tensor"))
        self.counts = torch.zeros(2 * SIDE, dtype=torch.int64)
        """[2 · SIDE]: how many values lie in every bin, from −2^exponent to 2^exponent."""
        self.exponent: int | None = None
        """None until a value other than 0 was seen; until then ``counts`` holds zeros, which are in one bin always."""
        self._like = torch.zeros(1)
        self._low = self._high = 0.0

    def add(self, x_NI: Tensor) -> None:
        x = checked(x_NI).flatten()
        low, high = (end.item() for end in x.aminmax())
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._like = x.new_zeros(1)
        largest = max(-low, high)
        if largest > 0:
            self._grow(math.frexp(largest)[1])
        index = torch.zeros_like(x, dtype=torch.int64)
        if self.exponent is not None:
            # In float64 the quotient is exact, so a value falls into the same bin whenever it comes.
            index = x.double().mul_(SIDE / 2.0**self.exponent).floor_().long()
        self.counts += index.add_(SIDE).bincount(minlength=2 * SIDE).to(self.counts.device)

    def _grow(self, exponent: int) -> None:
        if self.exponent is not None and exponent > self.exponent:
            bins = torch.arange(-SIDE, SIDE)
            merged = (bins >> min(exponent - self.exponent, 62)) + SIDE
            self.counts = torch.zeros_like(self.counts).index_add_(0, merged, self.counts)
        if self.exponent is None or exponent > self.exponent:
            self.exponent = exponent

    @property
    def width(self) -> float:
        """Of a bin; 0 as long as all values are 0."""
        return 0.0 if self.exponent is None else 2.0**self.exponent / SIDE

    @property
    def sizes(self) -> Tensor:
        """int64 [SIDE]: counts of |x| in bins from 0 up."""
        return self.counts[SIDE:] + self.counts[:SIDE].flip(0)

    @property
    def extremes(self) -> Limits:
        """Smallest and largest value, widened to contain 0: [1] each."""
        return Limits(self._like + self._low, self._like + self._high)

    def limits(self, form: Format) -> Limits:
        self._check(form, bool(self.counts.any()))
        return self.extremes if self.exponent is None else self._found(form)

    @abstractmethod
    def _found(self, form: Format) -> Limits:
        """The limits for ``form``, at least one value being different from 0."""


class Percentile(Histogram):
    """A share of the values, in percent; see ``ranges.percentile_limits``."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile is {percentile}, wanted more than 0 and at most 100")
        self._share = percentile / 100

    def _found(self, form: Format) -> Limits:
        everything = self.extremes
        if form.grid.symmetric:
            clip = self._quantile(self.sizes, self._share) * self.width
            return Limits(*(sign * everything.largest.clamp(max=clip) for sign in (-1, 1)))
        share = (1 + self._share) / 2
        high = (self._quantile(self.counts, share) - SIDE) * self.width
        low = (SIDE - self._quantile(self.counts.flip(0), share)) * self.width
        return Limits(everything.low.clamp(min=min(low, 0.0)), everything.high.clamp(max=max(high, 0.0)))

    @staticmethod
    def _quantile(counts: Tensor, share: float) -> float:
        """Where ``share`` of the counts lie below, in bins, those of one bin taken as spread evenly over it."""
        below = counts.cumsum(0)
        wanted = share * int(below[-1])
        bin_ = int(torch.searchsorted(below.double(), wanted).clamp(max=len(counts) - 1))
        return bin_ + 1 - (int(below[bin_]) - wanted) / max(1, int(counts[bin_]))


class SquaredError(Histogram):
    """The least squared error, every value taken as the middle of its bin; see ``clipping``."""

    def _found(self, form: Format) -> Limits:
        filled = self.counts.nonzero().flatten()
        middles = (filled.double() - SIDE + 0.5) * self.width
        everything = self.extremes
        span = Limits(everything.low.double(), everything.high.double())
        found = search(middles[None], span, form, self.counts[filled].double())
        return Limits(found.low.to(everything.low.dtype), found.high.to(everything.high.dtype))


class Entropy(Histogram):
    """The least divergence of the rounded distribution from the true one; see ``entropy``."""

    def _found(self, form: Format) -> Limits:
        seen = int(self.counts.sum())
        if seen < FEWEST_VALUES:
            raise ValueError(
                f"{seen} activations were observed, and range: entropy needs at least {FEWEST_VALUES} for a "
                "histogram; use more calibration documents"
            )
        everything, sizes = self.extremes, self.sizes
        used = int(sizes.nonzero()[-1]) + 1
        two_sided = (everything.low < 0) & (everything.high > 0)
        share = clip_share(sizes[None, :used].double(), form.grid, two_sided)
        clip = torch.minimum((share * used * self.width).to(everything.low.dtype), everything.largest)
        return within(everything, clip, form.grid)


def observer(method: str, percentile: float, blocks: Blocks) -> Observer:
    """A fresh observer. method: ``min_max``, ``percentile``, ``mse`` or ``entropy``; percentile counts for the one.

    blocks: ``tensor``, or with min_max ``channel`` (of the last axis, whatever its number in the blocks: the
    shape before it may differ from batch to batch). Raises ValueError for all else.
    """
    if blocks.kind not in (("tensor", "channel") if method == "min_max" else ("tensor",)):
        raise ValueError(f"range {method} cannot be observed by {blocks.kind}")
    if method == "min_max":
        return MinMax(blocks)
    if method == "percentile":
        return Percentile(percentile)
    if method == "mse":
        return SquaredError()
    if method == "entropy":
        return Entropy()
    raise ValueError(f"range is {method}, wanted min_max, percentile, mse or entropy")
