"""Several rules at once: which of the limits that seem breached are breached beyond what chance does among so
many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import ndtr, stdtr

from harness.statistics.interval import t_quantile, z_quantile


def p_value_of_interval(distance: float, half: float, confidence: float, clusters: int) -> float:
    """One-sided p-value of "the truth is beyond the limit", read back from a two-sided interval.

    distance: from the limit to the estimate, positive when the estimate is beyond it; half: from the estimate
    to the end of the interval that faces the limit. As the end is taken for a t quantile with clusters − 1
    degrees of freedom (normal for fewer than two clusters), the p-value is below (1 − confidence)/2 exactly
    when that end is beyond the limit.
    """
    if half <= 0:
        return 0.0 if distance > 0 else 1.0
    tail = (1 + confidence) / 2
    if clusters < 2:
        return float(ndtr(-z_quantile(tail) * distance / half))
    return float(stdtr(clusters - 1, -t_quantile(tail, clusters - 1) * distance / half))


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses are rejected while all false rejections together stay below ``alpha`` (Holm 1979)."""
    rejected = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda index: (math.isnan(p_values[index]), p_values[index]))
    for rank, index in enumerate(order):
        if math.isnan(p_values[index]) or p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
