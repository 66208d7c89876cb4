"""How a processor rounds: the bits of fixed computations, so that workers whose numbers would differ are refused.

Sums of products depend on the order in which a processor adds, and functions such as exp on the tables of its library:
two kinds of processors, or two builds of one library, differ there first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = ((1, 64, 48), (7, 33, 61), (48, 256, 96))
"""Rows, inner size and columns of the products: too few, uneven and enough for blocked kernels."""
DIGITS = 16


def describe_rounding(device: str = "cpu") -> str:
    """The first digits of a SHA-256 over the results on a device; equal on processors that round alike.

    Uses as many threads as torch has been given, on which sums may depend, too.
    """
    digest = hashlib.sha256()
    for result in _compute(device):
        digest.update(result.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def _compute(device: str) -> Iterator[Tensor]:
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for rows, inner, columns in SHAPES:
            left = torch.randn(rows, inner, generator=generator).to(device)
            right = torch.randn(inner, columns, generator=generator).to(device)
            yield left @ right
            yield left.bfloat16() @ right.bfloat16()
            yield from (torch.exp(left), torch.tanh(left), torch.sin(left), torch.rsqrt(left.abs() + 0.1))
            yield from (torch.softmax(left, -1), torch.log_softmax(left, -1), torch.logsumexp(left, -1))
            yield from (torch.cumsum(left, -1), left.sum(), torch.nn.functional.gelu(left))
            yield torch.nn.functional.scaled_dot_product_attention(left[None, None], left[None, None], left[None, None])
