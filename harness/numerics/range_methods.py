"""The range of every block by the name of a method.

min_max     everything
percentile  a share of the values; the others saturate                  ranges
mse         what gives the least squared error                          clipping
entropy     what keeps the most of the distribution's information       entropy
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.numerics.clipping import mse_limits
from harness.numerics.entropy import entropy_limits
from harness.numerics.formats import Format, check_tensor
from harness.numerics.ranges import Limits, percentile_limits


def find_limits(x: Tensor, form: Format, method: str, percentile: float = 99.9) -> Limits | None:
    """What the grid of every block of ``x`` has to span by a method's choice; None: its minimum and maximum.

    method: ``min_max``, ``percentile``, ``mse`` or ``entropy``. Raises ValueError for any other, for tensors
    that ``formats.quantize`` refuses, and for blocks that are too small for ``entropy``.
    """
    if method == "min_max":
        return None

    x = check_tensor(x)
    blocks = form.blocks.split(x)
    present = None if blocks.numel() == x.numel() else form.blocks.split(torch.ones_like(x, dtype=torch.bool))
    if method == "percentile":
        return percentile_limits(blocks, percentile, form.grid.symmetric, present)
    if method == "mse":
        return mse_limits(blocks, form)
    if method == "entropy":
        return entropy_limits(blocks, form, present)
    raise ValueError(f"range is {method}, expected min_max, percentile, mse or entropy")
