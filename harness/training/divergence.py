"""When a training is taken for one that diverges."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

RISES = 5
"""Evaluations in a row, each with a higher held-out loss than the one before, that are called divergence."""


def explain_divergence(held_out: Sequence[float]) -> str:
    """Why held-out losses, from before the first step on, show a training that diverges; empty if they do not."""
    if len(held_out) <= RISES:
        return ""
    last = held_out[-RISES - 1 :]
    if last[-1] > held_out[0] and all(after > before for before, after in pairwise(last)):
        return (
            f"the held-out loss rose {RISES} times in a row, to {last[-1]:.4g}, and was {held_out[0]:.4g} before the "
            "first step"
        )
    return ""
