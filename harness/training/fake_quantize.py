"""Rounding that can be trained through: the straight-through estimator, and learned step sizes.

    x ─ blocks ─▶ q = x / s ─ grid ─▶ Q(q) · s          forward: the value that the finished model computes with
    ∂/∂x = 1 where the grid reaches, 0 outside           (Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018)
    ∂/∂s = Q(q) − q inside, Q(q) outside                 (LSQ: Esser et al. 2020, arXiv 1902.08153)

A learned step starts at 2·mean|x| / √q_max, and its gradient is multiplied by 1 / √(n·q_max), where n values share it
and q_max is the largest code (the largest value in units of the step, for floats and codebooks).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from harness.numerics.formats import Format, block_steps
from harness.numerics.grids import Grid, Steps
from harness.numerics.ranges import Limits

SMALLEST = torch.finfo(torch.float32).tiny
"""Of a learned step."""


class _Round(torch.autograd.Function):
    """Values on a grid. scale: [..., 1], with a gradient where it is learned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, steps: Steps, grid: Grid, factor: float) -> Tensor:
        rounded = grid.round(x, steps)
        quotient = x / steps.divisor
        inside = grid.reaches(quotient, steps.zero_point)
        ctx.factor, ctx.learned = factor, ctx.needs_input_grad[1]
        ctx.save_for_backward(inside, *((rounded / steps.divisor - quotient * inside,) if ctx.learned else ()))
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, *slope = ctx.saved_tensors
        of_scale = (grad * slope[0]).sum(-1, keepdim=True) * ctx.factor if ctx.learned else None
        return grad * inside, of_scale, None, None, None


def round_through(x: Tensor, form: Format, limits: Limits | None = None) -> Tensor:
    """``x`` rounded as ``formats.quantize`` does, with the gradient of the straight-through estimator.

    limits: that the grid of every block spans; None: the values of the block. They have no gradient.
    """
    blocks = form.blocks.split(x)
    with torch.no_grad():
        steps = block_steps(blocks.detach(), form, limits).spread
    rounded = _Round.apply(blocks, steps.scale, steps, form.grid, 1.0)  # type: ignore[no-untyped-call]
    return form.blocks.join(rounded, tuple(x.shape))


class LearnedSteps(nn.Module):
    """Step sizes of a tensor as parameters, one for each block; zero points stay where they were set."""

    def __init__(self, form: Format, scale: Tensor, zero_point: Tensor | None, shared: int) -> None:
        """shared: how many values a step serves (n)."""
        super().__init__()
        self.form = form
        self.scale = nn.Parameter(scale.clone())
        self.register_buffer("zero_point", zero_point, persistent=False)
        self.factor = 1 / math.sqrt(shared * form.grid.largest_code)

    @staticmethod
    def of_values(x: Tensor, form: Format, shared: int = 0) -> LearnedSteps:
        """Steps for ``x`` and tensors like it: 2·mean|x| / √q_max; on grids with zero points, those that span ``x``.

        shared: how many values a step serves, if not as many as in a block of ``x``.
        """
        with torch.no_grad():
            blocks = form.blocks.split(x.detach().float())
            spanning = block_steps(blocks, form)
            if spanning.zero_point is not None:
                return LearnedSteps(form, spanning.scale, spanning.zero_point, shared or blocks.shape[-1])
            present = form.blocks.split(torch.ones_like(x, dtype=torch.float32)).sum(-1)
            size = 2 * blocks.abs().sum(-1) / present / math.sqrt(form.grid.largest_code)
            return LearnedSteps(form, size.clamp(min=SMALLEST), None, shared or blocks.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid of the learned steps, with gradients for both."""
        blocks = self.form.blocks.split(x)
        scale = self.scale.abs().clamp(min=SMALLEST)[..., None]
        zero: Any = self.zero_point
        steps = Steps(scale.detach(), None if zero is None else zero[..., None])
        rounded = _Round.apply(blocks, scale, steps, self.form.grid, self.factor)  # type: ignore[no-untyped-call]
        return self.form.blocks.join(rounded, tuple(x.shape))
