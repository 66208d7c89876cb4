"""Whether two ways of scoring the same sequences gave the same, up to the rounding of the model's dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.scoring.likelihoods import Likelihood

FULL_PRECISION = {torch.float32, torch.float64}
ABSOLUTE, RELATIVE = 1e-4, 1e-6
"""Largest difference of two log-likelihoods in nats in full precision, and what each nat of them adds to it."""
HALF_PRECISION_UNITS = 8
"""Largest difference in 16-bit dtypes, in units of their precision at the log-likelihood (at 4 nats if it is smaller).

Logits move by about one unit where the shapes of matrix products change, each log-probability is rounded to the dtype,
and so is their sum.
"""


def explain_likelihoods(packed: Sequence[Likelihood], plain: Sequence[Likelihood], dtype: torch.dtype) -> str:
    """How log-likelihoods in packed rows differ from those of one sequence per row; empty: they do not.

    Values that are not finite never agree: of a model that is broken, rows with one sequence tell most.
    """
    pairs = list(zip(packed, plain, strict=True))
    apart = [pair for pair in pairs if not _close(pair[0].total, pair[1].total, dtype)]
    if apart:
        largest = max(abs(one.total - other.total) for one, other in apart)
        return f"{len(apart)} of {len(pairs)} log-likelihoods differ in packed rows, by up to {largest:.2g} nats"
    changed = sum(one.greedy != other.greedy for one, other in pairs) if dtype in FULL_PRECISION else 0
    return f"{changed} of {len(pairs)} greedy continuations are others in packed rows" if changed else ""


def is_tie(logits_V: Tensor, one: int, other: int) -> bool:
    """Whether two tokens are equally likely up to the rounding of logits in their dtype."""
    info = torch.finfo(logits_V.dtype)
    unit = info.eps * (64 if logits_V.dtype in FULL_PRECISION else 4)
    values = logits_V.double()
    scale = max(float(values[one].abs()), float(values[other].abs()), float(values.square().mean().sqrt()))
    return bool((values[one] - values[other]).abs() <= unit * scale)


def _close(one: float, other: float, dtype: torch.dtype) -> bool:
    if not (math.isfinite(one) and math.isfinite(other)):
        return False
    if dtype in FULL_PRECISION:
        return abs(one - other) <= ABSOLUTE + RELATIVE * abs(other)
    return abs(one - other) <= HALF_PRECISION_UNITS * torch.finfo(dtype).eps * max(4.0, abs(other))
