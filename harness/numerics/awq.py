"""Activation-aware weight scaling: the two searches of AWQ (Lin et al. 2023, arXiv 2306.00978) on matrices.

    scale   s = mean|x|^α / sqrt(max · min), α on a grid over [0, 1]:  argmin ‖ W x − Q(W s)(x / s) ‖²  (section 3.2)
    clip    m · max|w| of every block, m on a grid below 1:            argmin ‖ W x − Q(clip(W)) x ‖²

Where the paper leaves a choice open, the authors' implementation is followed: normalization by the largest and
smallest scale, the clip error of each block on its own, m from 1 down to more than a half.

Legend: N tokens, O output channels, I input channels, S segments of the input dimension, n inputs of a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.numerics.formats import Format, check_tensor, quantize
from harness.numerics.granularity import Blocks
from harness.numerics.ranges import Limits, min_max

SMALLEST = 1e-4
"""Lower bound on powers of activation means; the authors' value."""

Round = Callable[[Tensor], Tensor]
OutputError = Callable[[Sequence[Tensor]], float]


@dataclass(frozen=True)
class Scaling:
    """The best scale [I] of a group of weights. exponent: its α, None for no scaling. error, unscaled: output error
    with and without the scale."""

    scale: Tensor
    exponent: float | None
    error: float
    unscaled: float


def compute_scale(mean_I: Tensor, exponent: float, relative_I: Tensor | None = None) -> Tensor:
    """The scale [I] for one α from the mean absolute input of every channel.

    relative_I: mean weight size as returned by ``relative_size``, for scales mean|x|^α / mean|w|^(1−α) (the
    "duo scaling" of later implementations). Channels that were never active get scale 1 and are excluded from the
    normalization.
    """
    powers = mean_I.pow(exponent)
    if relative_I is not None:
        powers = powers / (relative_I.pow(1 - exponent) + SMALLEST)
    powers = powers.clamp(min=SMALLEST)
    active = mean_I > 0
    if not bool(active.any()):
        return torch.ones_like(mean_I)
    middle = (powers[active].max() * powers[active].min()).sqrt()
    return torch.where(active, powers / middle, torch.ones_like(powers))


def relative_size(weights: Sequence[Tensor], forms: Sequence[Format]) -> Tensor:
    """[I]: mean over all output channels of |w| relative to the largest of its block."""
    relative = []
    for weight_OI, form in zip(weights, forms, strict=True):
        blocks = form.blocks.split(check_tensor(weight_OI).abs())
        share = blocks / blocks.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(blocks.dtype).tiny)
        relative.append(form.blocks.join(share, tuple(weight_OI.shape)))
    return torch.cat(relative).mean(dim=0)


def search_scale(
    mean_I: Tensor,
    weights: Sequence[Tensor],
    roundings: Sequence[Round],
    error: OutputError,
    grid: int = 20,
    relative_I: Tensor | None = None,
) -> Scaling:
    """The scale with the smallest output error among α = 0, 1/grid … 1 and no scaling; ties go to the smallest α.

    weights [O, I]: all weights that read the same inputs. roundings: quantizes each weight after scaling. error:
    returns the output error when the weights are replaced by the given ones (``gram_error`` for linear layers alone).
    """
    unscaled = error([rounding(weight) for weight, rounding in zip(weights, roundings, strict=True)])
    best = Scaling(torch.ones_like(mean_I), None, unscaled, unscaled)
    for step in range(grid + 1):
        exponent = step / grid if grid else 0.0
        if exponent == 0 and relative_I is None:
            continue  # The scale is 1 everywhere.
        scale_I = compute_scale(mean_I, exponent, relative_I)
        rounded = [rounding(weight * scale_I) / scale_I for weight, rounding in zip(weights, roundings, strict=True)]
        candidate_error = error(rounded)
        if candidate_error < best.error:
            best = Scaling(scale_I, exponent, candidate_error, unscaled)
    return best


def gram_error(gram_II: Tensor, weights: Sequence[Tensor], replaced: Sequence[Tensor]) -> float:
    """‖ X (W − Ŵ)ᵀ ‖² summed over weights that read the same inputs X [N, I]; only XᵀX is needed.

    Replacements are first cast to the dtype of the weights, in which they will be stored.
    """
    total = 0.0
    for old_OI, new_OI in zip(weights, replaced, strict=True):
        change_OI = (new_OI.to(old_OI.dtype) - old_OI).to(gram_II.dtype)
        total += ((change_OI @ gram_II) * change_OI).sum().item()
    return total


def search_clip(
    weight_OI: Tensor,
    inputs_NI: Tensor,
    form: Format,
    limits: Limits | None = None,
    grid: int = 20,
    shrink: float = 0.5,
) -> Limits | None:
    """The clipping limits of every block that give the smallest output error.

    limits: start of the search (None: minimum and maximum). Candidates are ranges clipped at 1, 1 − 1/grid … of the
    largest absolute limit of the block, ``shrink · grid`` of them; the error of a block is that of its contribution to
    the output, as if all other blocks were exact. If the whole output does not improve (errors of blocks can add
    up), or without inputs, ``limits`` are returned unchanged.
    """
    if not len(inputs_NI):
        return limits
    weight = check_tensor(weight_OI)
    inputs = inputs_NI.to(weight.dtype)
    start = limits or min_max(form.blocks.split(weight))
    gram_Snn = _grams(inputs, form.blocks)
    plain = quantize(weight, form, limits).values - weight
    best, smallest = start, _block_errors(plain, gram_Snn, form.blocks)
    for step in range(1, round(shrink * grid)):
        tried = _cut_limits(start, 1 - step / grid)
        errors = _block_errors(quantize(weight, form, tried).values - weight, gram_Snn, form.blocks)
        better = errors < smallest
        best = Limits(torch.where(better, tried.low, best.low), torch.where(better, tried.high, best.high))
        smallest = torch.where(better, errors, smallest)
    clipped = quantize(weight, form, best).values - weight
    improved = (inputs @ clipped.T).square().sum() < (inputs @ plain.T).square().sum()
    return best if bool(improved) else limits


def _cut_limits(limits: Limits, share: float) -> Limits:
    largest = torch.maximum(-limits.low, limits.high) * share
    return Limits(torch.maximum(limits.low, -largest), torch.minimum(limits.high, largest))


def _segments(blocks: Blocks) -> Blocks:
    """How the input dimension is segmented: square blocks like groups, every other granularity whole rows."""
    if blocks.kind == "channel" and blocks.axis:
        raise ValueError(f"clip search needs blocks along the inputs: axis {blocks.axis} gives no block its own output")
    return Blocks("group", blocks.size) if blocks.size else Blocks("token")


def _grams(inputs_NI: Tensor, blocks: Blocks) -> Tensor:
    """[S, n, n]: XᵀX of every segment, which determines the error of a block."""
    split = _segments(blocks).split(inputs_NI)
    x_SNn = split[None] if split.dim() == 2 else split.transpose(0, 1)
    return x_SNn.transpose(1, 2) @ x_SNn


def _block_errors(error_OI: Tensor, gram_Snn: Tensor, blocks: Blocks) -> Tensor:
    """‖ X_segment δᵀ ‖² of every block, shaped like the steps."""
    split = _segments(blocks).split(error_OI)
    error_SOn = split[None] if split.dim() == 2 else split.transpose(0, 1)
    errors_OS = ((error_SOn @ gram_Snn) * error_SOn).sum(dim=-1).T
    if blocks.kind == "tensor":
        return errors_OS.sum()[None]
    if blocks.kind == "block":
        assert blocks.size is not None  # noqa: S101 - Blocks saw to it
        rows = Blocks("group", blocks.size).split(errors_OS.T)
        return rows.sum(dim=-1).T
    return errors_OS if blocks.kind == "group" else errors_OS[:, 0]
