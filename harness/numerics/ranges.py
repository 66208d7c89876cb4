"""Ranges: what the grid of a block has to span.

Every method takes blocks [..., n] and gives limits of the shape [...].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from harness.numerics.formats import Format


@dataclass(frozen=True)
class Limits:
    """What the grid of every block has to span: low ≤ 0 ≤ high."""

    low: Tensor
    high: Tensor


def min_max(blocks: Tensor) -> Limits:
    """Smallest and largest value of every block, widened to contain 0."""
    low, high = blocks.aminmax(dim=-1)
    return Limits(low=low.clamp_(max=0), high=high.clamp_(min=0))


def find_limits(x: Tensor, form: Format, method: str, percentile: float = 99.9) -> Limits | None:
    """What the grid of every block of ``x`` has to span by a method's choice; None: its minimum and maximum."""
    if method == "min_max":
        return None
    raise NotImplementedError(method)
