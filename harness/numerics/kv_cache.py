"""How a quantized KV cache stores the keys or values of an attention layer, and which tokens are quantized when.

    tokens 0 … n − 1 of a text, the query being token n − 1:

    ├── quantized ──┼── full precision: the newest `residual` and the rest of an incomplete group ──┤
    0            count(n)                                                                           n

Along tokens (keys in KIVI) a scale spans `size` consecutive tokens of one channel; along channels (values in KIVI)
`size` neighbouring channels of one token. Affine blocks have their minimum as an offset, s = (max − min) / (2^b − 1)
and x̂ = s · round((x − min) / s) + min; unlike with an integer zero point, a block far from 0 wastes no codes.

Source: Liu et al. 2024, KIVI (arXiv 2402.02750), section 3 and algorithm 1.

Legend: B texts, H key heads, S tokens, D channels of a head, T queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.numerics.grids import Grid, Steps

SCALE_BITS = 16
"""Bits of one scale and of one offset."""
NO_TEXT = 2**40
"""Start position of a text that has no visible token yet."""


@dataclass(frozen=True)
class CachePart:
    """Storage of the keys or of the values.

    along: axis a scale spans; None: no scale, values are cast (FP8 as servers do by default). size: tokens or channels
    per scale; None (only along channels) is a whole head. residual: newest tokens in full precision. flush: tokens
    accumulate in full precision until there are ``residual`` of them, which are then all quantized at once (the keys
    of KIVI's algorithm); otherwise ``residual`` tokens, and along tokens up to ``size`` − 1 more, are always kept.
    """

    grid: Grid
    along: Literal["tokens", "channels"] | None
    size: int | None
    residual: int
    flush: bool = False

    def __post_init__(self) -> None:
        if self.along == "tokens" and self.size is None:
            raise ValueError("a scale along tokens needs a size, because a text grows without limit")
        if self.flush and (not self.residual or self.residual % self._unit):
            raise ValueError(f"residual is {self.residual}, expected a multiple of {self._unit} for flush")

    def count(self, n: Tensor) -> Tensor:
        """Number of quantized tokens among the first ``n`` of a text when the last of them attends."""
        if self.flush:
            return n.clamp(min=0) // self.residual * self.residual
        return (n - self.residual).clamp(min=0) // self._unit * self._unit

    def quantized_ends(self, positions_T: Tensor, starts_B: Tensor) -> Tensor:
        """[B, T]: end (exclusive) of the quantized tokens that the query at a position sees. starts_B: of the texts."""
        counts_BT = self.count(positions_T[None] - starts_B[:, None] + 1)
        return torch.where(counts_BT > 0, counts_BT + starts_B[:, None], 0)

    def quantize(self, x_BHSD: Tensor, starts_B: Tensor) -> Tensor:
        """``x`` as read back from the cache, in its own dtype.

        Groups of tokens begin at the start of each text. Values before it, and tokens of an incomplete group, are
        arbitrary. NaN and infinity are kept and spoil their block.
        """
        if self.along != "tokens":
            return self._round(x_BHSD)
        size, S = self._unit, x_BHSD.shape[2]
        length = (S - min(int(starts_B.min()), S)) // size * size
        if not length:
            return x_BHSD
        order = torch.arange(S, device=x_BHSD.device)
        there_BL = (starts_B[:, None] + order[:length]).clamp(max=S - 1)
        aligned_BHDL = _take(x_BHSD, there_BL).transpose(2, 3)
        back_BS = (order - starts_B[:, None]).clamp(0, length - 1)
        return _take(self._round(aligned_BHDL).transpose(2, 3), back_BS)

    def bits_per_value(self, channels: int) -> float:
        """Bits of a code plus its share of scale and offset, in a head with ``channels`` channels."""
        steps = SCALE_BITS * (1 if self.grid.symmetric else 2) if self.along else 0
        if self.along == "tokens":
            return self.grid.bits + steps / self._unit
        return self.grid.bits + steps * -(-channels // (self.size or channels)) / channels

    @property
    def _unit(self) -> int:
        """Tokens that are quantized together."""
        return self.size if self.along == "tokens" and self.size else 1

    def _round(self, x: Tensor) -> Tensor:
        """Round ``x`` [..., n] in blocks along the last axis; the last block of a row may be shorter."""
        size = min(self.size or x.shape[-1], x.shape[-1])
        places = torch.arange(-(-x.shape[-1] // size) * size, device=x.device).clamp(max=x.shape[-1] - 1)
        # A short block is padded with its own last value, which changes neither its minimum nor its maximum.
        wide = x[..., places] if len(places) > x.shape[-1] else x
        blocks = (wide if x.dtype == torch.float64 else wide.float()).reshape(*x.shape[:-1], -1, size)
        low, high = blocks.aminmax(dim=-1, keepdim=True)
        offset = torch.zeros_like(low) if self.grid.symmetric else low
        steps = self.grid.steps((low - offset).clamp(max=0), (high - offset).clamp(min=0))
        steps = steps if self.along else Steps(torch.ones_like(steps.scale))
        rounded = self.grid.round(blocks - offset, steps) + offset
        kept = torch.where(blocks.isfinite(), rounded, blocks)
        return kept.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]].to(x.dtype)


def _take(x_BHSD: Tensor, where_BL: Tensor) -> Tensor:
    """[B, H, L, D]: the tokens of each text at the positions ``where_BL``."""
    batch, heads, _, channels = x_BHSD.shape
    index = where_BL.to(x_BHSD.device)[:, None, :, None].expand(batch, heads, -1, channels)
    return x_BHSD.gather(2, index)


def text_starts(mask: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """[B]: the first key visible to any query, 0 without a mask, ``NO_TEXT`` if no key is visible.

    mask: [B or 1, heads or 1, T, S], True (or about 0) where a query sees a key.
    """
    if mask is None:
        return torch.zeros(batch, dtype=torch.int64, device=device)
    seen_BS = is_visible(mask).flatten(1, 2).any(dim=1).expand(batch, -1)
    first_B = seen_BS.int().argmax(dim=-1)
    return torch.where(seen_BS.any(dim=-1), first_B, NO_TEXT)


def is_visible(mask: Tensor) -> Tensor:
    """True where a boolean or an additive mask lets a query see a key."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
