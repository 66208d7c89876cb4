"""Per-token statistics of two rows of logits, computed in one pass over the rows.

With z the logits of one position, m = max z, a = z - m and S = sum e^a, for reference r and variant v:

    NLL = m + ln S - z[target]                          entropy = ln S - (sum e^a a) / S
    KL(r||v) = (sum e^a_r (z_r - z_v)) / S_r + (m_v + ln S_v) - (m_r + ln S_r)
    largest probability = 1 / S                          total variation = 1/2 sum |e^a_r / S_r - e^a_v / S_v|

No probability is formed before its logarithm. 0 log 0 = 0, so ids that both sides mask with -inf contribute 0; NaN and
infinity propagate otherwise. Equal rows give exactly 0. Legend: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sums = tuple[Tensor, ...]
LogitKernel = Callable[[Tensor, Tensor], Sums]

# Position of a maximum that no entry equals: larger than any vocabulary index, and exactly representable.
_NOWHERE = 2.0**25


def logit_sums(reference_NV: Tensor, variant_NV: Tensor) -> Sums:
    """Thirteen float32 sums and extremes [N] of each row, in the order that ``logit_statistics`` expects.

    The position of the maximum is a float (exact up to 2^24 entries), so that all sums can be fused into one loop.
    """
    r, v = reference_NV.float(), variant_NV.float()
    max_r, max_v = r.amax(-1), v.amax(-1)
    index = torch.arange(r.shape[-1], device=r.device, dtype=torch.float32)
    top_r = torch.where(r == max_r[:, None], index, _NOWHERE).amin(-1)
    top_v = torch.where(v == max_v[:, None], index, _NOWHERE).amin(-1)
    difference = torch.where(r == v, 0.0, r - v)
    a_r, a_v = r - max_r[:, None], v - max_v[:, None]
    e_r, e_v = a_r.exp(), a_v.exp()
    sum_r, sum_v = e_r.sum(-1), e_v.sum(-1)
    forward = torch.where(e_r == 0, 0.0, e_r * difference).sum(-1)
    backward = torch.where(e_v == 0, 0.0, e_v * difference).sum(-1)
    spread_r = torch.where(e_r == 0, 0.0, e_r * a_r).sum(-1)
    spread_v = torch.where(e_v == 0, 0.0, e_v * a_v).sum(-1)
    size = difference.abs()
    variation = (e_r * (1.0 / sum_r)[:, None] - e_v * (1.0 / sum_v)[:, None]).abs().sum(-1)
    extremes = (max_r, max_v, top_r, top_v)
    return (
        *extremes,
        sum_r,
        sum_v,
        forward,
        backward,
        spread_r,
        spread_v,
        size.amax(-1),
        size.sum(-1),
        variation,
    )


def logit_sums_in_cache(reference_NV: Tensor, variant_NV: Tensor) -> Sums:
    """``logit_sums`` a few rows at a time, so that temporaries stay in the cache."""
    rows = max(1, 2**17 // reference_NV.shape[-1])
    pieces = zip(torch.split(reference_NV, rows), torch.split(variant_NV, rows), strict=True)
    sums = [logit_sums(r, v) for r, v in pieces]
    return tuple(torch.cat(parts) for parts in zip(*sums, strict=True))


def logit_statistics(
    reference_NV: Tensor, variant_NV: Tensor, targets_N: Tensor, kernel: LogitKernel = logit_sums_in_cache
) -> dict[str, Tensor]:
    """The per-token columns of the table ``tokens``, each [N]: float64 nats, or int32 for top-1 ids.

    logits: any floating dtype, the same shape on both sides. The top-1 id of a row with NaN in it is -1.
    KL is KL(reference || variant) as computed, which may be negative due to rounding.
    """
    sums = kernel(reference_NV, variant_NV)
    top_r, top_v = (torch.where(top < _NOWHERE, top, -1.0).to(torch.int32) for top in sums[2:4])
    max_r, max_v = sums[0].double(), sums[1].double()
    sum_r, sum_v, forward, backward, spread_r, spread_v, largest, total, variation = (s.double() for s in sums[4:])
    lse_r, lse_v = max_r + sum_r.log(), max_v + sum_v.log()
    at = targets_N[:, None]
    return {
        "reference_nll": lse_r - reference_NV.gather(-1, at)[:, 0].double(),
        "variant_nll": lse_v - variant_NV.gather(-1, at)[:, 0].double(),
        "reference_top1": top_r,
        "variant_top1": top_v,
        "reference_top1_p": 1.0 / sum_r,
        "variant_top1_p": 1.0 / sum_v,
        "reference_entropy": sum_r.log() - spread_r / sum_r,
        "variant_entropy": sum_v.log() - spread_v / sum_v,
        "kl": forward / sum_r + (lse_v - lse_r),
        "reverse_kl": (lse_r - lse_v) - backward / sum_v,
        "max_abs_diff": largest,
        "mean_abs_diff": total / reference_NV.shape[-1],
        "total_variation": variation / 2.0,
    }


def extra_statistics(
    extra_NE: Tensor, common_NV: Tensor, targets_N: Tensor, nll_N: Tensor, top1_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Probability of one side's ids outside of the common ones, float64 [N], and its top-1 among all ids, int32 [N].

    nll, top1: those over the common ids, as ``logit_statistics`` gives them, from which their log-sum-exp L follows
    without another pass over V. With M the log-sum-exp of the E extra logits, the probability is e^M / (e^L + e^M). It
    is NaN where logits are.
    """
    if not extra_NE.shape[-1]:
        return torch.zeros_like(nll_N), top1_N
    lse_N = nll_N + common_NV.gather(-1, targets_N[:, None])[:, 0].double()
    mass_N = torch.sigmoid(extra_NE.double().logsumexp(-1) - lse_N)
    highest_N, place_N = extra_NE.float().max(-1)
    common_N = common_NV.gather(-1, top1_N.clamp(min=0).long()[:, None])[:, 0].float()
    top_N = torch.where(highest_N > common_N, common_NV.shape[-1] + place_N, top1_N)
    return mass_N, torch.where(top1_N < 0, top1_N, top_N).to(torch.int32)
