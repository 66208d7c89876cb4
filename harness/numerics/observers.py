"""Observers: find the limits of activations in one pass, keeping only extremes or a histogram.

observed = make_observer("percentile", 99.9, Blocks("tensor"))
for x_NI in batches:
    observed.add(x_NI)
limits = observed.limits(form)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from harness.numerics.clipping import search_limits
from harness.numerics.entropy import FEWEST_VALUES, clip_share, limits_at_clip
from harness.numerics.formats import Format, check_tensor
from harness.numerics.granularity import Blocks
from harness.numerics.ranges import Limits

SIDE_BINS = 4096
"""Bins on each side of 0. Their range is at most twice the largest value, so at least half of a side is used."""


class Observer(ABC):
    """Accumulates tensors and then computes the limits of a grid."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks

    @abstractmethod
    def add(self, x_NI: Tensor) -> None:
        """Accumulate activations [..., I]. Raises ValueError for NaN, infinity, non-float types and empty tensors."""

    @abstractmethod
    def limits(self, form: Format) -> Limits:
        """The limits for ``form``: [1] for a tensor, [I] for channels.

        Raises ValueError if nothing was observed, or if ``form`` has another granularity than was observed.
        """

    def _check(self, form: Format, seen: bool) -> None:
        if form.blocks.kind != self.blocks.kind:
            raise ValueError(f"limits were observed per {self.blocks.kind}, expected per {form.blocks.kind}")
        if not seen:
            raise ValueError("no activations were observed, so they have no limits")


class MinMax(Observer):
    """Minimum and maximum of the tensor or of every channel of the last axis."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__(blocks)
        self._limits: Limits | None = None

    def add(self, x_NI: Tensor) -> None:
        x = check_tensor(x_NI)
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
    """Counts of all observed values, in equal bins over a range that grows as needed.

    Range and bin width are related by powers of two, and growing merges whole bins. So no count is lost, and the
    histogram does not depend on the order in which values arrive.
    """

    def __init__(self) -> None:
        super().__init__(Blocks("tensor"))
        self.counts = torch.zeros(2 * SIDE_BINS, dtype=torch.int64)
        """[2 · SIDE_BINS]: number of values in every bin, from −2^exponent to 2^exponent."""
        self.exponent: int | None = None
        """None until a value other than 0 was observed; zeros always fall into the same bin of ``counts``."""
        self._like = torch.zeros(1)
        self._low = self._high = 0.0

    def add(self, x_NI: Tensor) -> None:
        x = check_tensor(x_NI).flatten()
        low, high = (end.item() for end in x.aminmax())
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._like = x.new_zeros(1)
        largest = max(-low, high)
        if largest > 0:
            self._grow(math.frexp(largest)[1])
        index = torch.zeros_like(x, dtype=torch.int64)
        if self.exponent is not None:
            # In float64 the quotient is exact, so a value falls into the same bin whenever it arrives.
            index = x.double().mul_(SIDE_BINS / 2.0**self.exponent).floor_().long()
        self.counts += index.add_(SIDE_BINS).bincount(minlength=2 * SIDE_BINS).to(self.counts.device)

    def _grow(self, exponent: int) -> None:
        if self.exponent is not None and exponent > self.exponent:
            bins = torch.arange(-SIDE_BINS, SIDE_BINS)
            merged = (bins >> min(exponent - self.exponent, 62)) + SIDE_BINS
            self.counts = torch.zeros_like(self.counts).index_add_(0, merged, self.counts)
        if self.exponent is None or exponent > self.exponent:
            self.exponent = exponent

    @property
    def width(self) -> float:
        """Width of a bin; 0 as long as all values are 0."""
        return 0.0 if self.exponent is None else 2.0**self.exponent / SIDE_BINS

    @property
    def sizes(self) -> Tensor:
        """int64 [SIDE]: counts of |x| in bins from 0 up."""
        return self.counts[SIDE_BINS:] + self.counts[:SIDE_BINS].flip(0)

    @property
    def extremes(self) -> Limits:
        """Smallest and largest value, widened to contain 0: [1] each."""
        return Limits(self._like + self._low, self._like + self._high)

    def limits(self, form: Format) -> Limits:
        self._check(form, bool(self.counts.any()))
        return self.extremes if self.exponent is None else self._limits_of_values(form)

    @abstractmethod
    def _limits_of_values(self, form: Format) -> Limits:
        """The limits for ``form`` if at least one value is not 0."""


class Percentile(Histogram):
    """Limits that hold a percentage of the values; see ``ranges.percentile_limits``."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile is {percentile}, expected more than 0 and at most 100")
        self._share = percentile / 100

    def _limits_of_values(self, form: Format) -> Limits:
        everything = self.extremes
        if form.grid.symmetric:
            clip = self._quantile(self.sizes, self._share) * self.width
            return Limits(*(sign * everything.largest.clamp(max=clip) for sign in (-1, 1)))
        share = (1 + self._share) / 2
        high = (self._quantile(self.counts, share) - SIDE_BINS) * self.width
        low = (SIDE_BINS - self._quantile(self.counts.flip(0), share)) * self.width
        return Limits(everything.low.clamp(min=min(low, 0.0)), everything.high.clamp(max=max(high, 0.0)))

    @staticmethod
    def _quantile(counts: Tensor, share: float) -> float:
        """The position, in bins, below which ``share`` of the counts lie; counts are spread evenly within a bin."""
        below = counts.cumsum(0)
        wanted = share * int(below[-1])
        bin_ = int(torch.searchsorted(below.double(), wanted).clamp(max=len(counts) - 1))
        return bin_ + 1 - (int(below[bin_]) - wanted) / max(1, int(counts[bin_]))


class SquaredError(Histogram):
    """Limits with the least squared error, values placed at the middle of their bin; see ``clipping``."""

    def _limits_of_values(self, form: Format) -> Limits:
        filled = self.counts.nonzero().flatten()
        middles = (filled.double() - SIDE_BINS + 0.5) * self.width
        everything = self.extremes
        span = Limits(everything.low.double(), everything.high.double())
        limits = search_limits(middles[None], span, form, self.counts[filled].double())
        return Limits(limits.low.to(everything.low.dtype), limits.high.to(everything.high.dtype))


class Entropy(Histogram):
    """Limits with the least KL divergence of the rounded from the true distribution; see ``entropy``."""

    def _limits_of_values(self, form: Format) -> Limits:
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
        return limits_at_clip(everything, clip, form.grid)


def make_observer(method: str, percentile: float, blocks: Blocks) -> Observer:
    """A new observer. method: ``min_max``, ``percentile``, ``mse`` or ``entropy``; percentile: used by the method
    ``percentile`` only.

    blocks: ``tensor``, or with min_max also ``channel`` (of the last axis, whatever axis the blocks name: the shape
    before it may differ from batch to batch). Raises ValueError for anything else.
    """
    if blocks.kind not in (("tensor", "channel") if method == "min_max" else ("tensor",)):
        raise ValueError(f"range {method} cannot be observed per {blocks.kind}")
    if method == "min_max":
        return MinMax(blocks)
    if method == "percentile":
        return Percentile(percentile)
    if method == "mse":
        return SquaredError()
    if method == "entropy":
        return Entropy()
    raise ValueError(f"range is {method}, expected min_max, percentile, mse or entropy")
