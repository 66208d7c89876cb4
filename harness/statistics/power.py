"""How often a rule can decide, before anything is measured: power of the intervals that rules judge.

Power is the probability that the whole two-sided interval lies on the safe side of a limit when the truth does. It
never falls as documents are added or as the limit is loosened, so that the fewest documents for a power, and the
tightest limit for a number of documents, are found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.special import bdtr, nctdtr, ndtr

from harness.statistics.interval import t_quantile, z_quantile

TARGET = 0.8
"""The usual power: of five variants that deserve to pass, four do."""
MOST_DOCUMENTS = 10**8
_NORMAL = 10_000
"""From so many documents on, Student's t is normal to four digits."""


def mean_power(distance: float, deviation: float, documents: int, confidence: float = 0.95) -> float:
    """Power of a t interval of a mean over independent documents (the means within documents, where clustered).

    distance: from the truth to the limit, positive when the truth is on the safe side. deviation: standard deviation
    between documents. 1 − F(t_{1−α}; n − 1, distance·√n/deviation), α = (1 − confidence)/2, F the noncentral t
    distribution (Chow, Shao & Wang, Sample Size Calculations in Clinical Research, 3.1).
    """
    _check(documents, confidence)
    if deviation < 0:
        raise ValueError(f"power: found a standard deviation of {deviation}, expected at least 0")
    if documents < 2:
        return 0.0
    if deviation == 0:
        return 1.0 if distance > 0 else 0.0
    shift = distance * math.sqrt(documents) / deviation
    tail = (1 + confidence) / 2
    if documents > _NORMAL:
        return float(ndtr(shift - z_quantile(tail)))
    critical = t_quantile(tail, documents - 1)
    below = float(nctdtr(documents - 1, shift, critical))
    # Far out the series gives no number; there the chance is 0 or 1 to many digits, whatever the distribution.
    return float(ndtr(shift - critical)) if math.isnan(below) else min(max(1.0 - below, 0.0), 1.0)


def paired_power(
    margin: float, discordance: float, documents: int, confidence: float = 0.95, drop: float = 0.0
) -> float:
    """Power of Tango's score interval: that a drop in accuracy of ``margin`` is excluded when it really is ``drop``.

    discordance: share of items that only one side gets right. Φ((√n (margin − drop) − z √v₀) / √v₁), where v₀ and v₁
    are the variances of the paired difference at the margin and in truth (Nam 1997, for the score of Tango 1998).
    Raises ValueError unless 0 ≤ |drop| ≤ discordance ≤ 1 and 0 < margin < 1.
    """
    _check(documents, confidence)
    if not (0 <= abs(drop) <= discordance <= 1 and 0 < margin < 1):
        raise ValueError(f"power: found margin {margin}, discordance {discordance}, drop {drop}; expected shares")
    if documents < 1:
        return 0.0
    gained = (discordance - drop) / 2
    linear = -discordance + (2 - drop) * margin
    constant = -gained * margin * (1 - margin)
    # As in tango_score: the share of gained items that is likeliest at the margin, here for what is expected.
    likely = (math.sqrt(linear * linear - 8 * constant) - linear) / 4
    at_margin = 2 * likely + margin * (1 - margin)
    in_truth = discordance - drop * drop
    distance = math.sqrt(documents) * (margin - drop) - z_quantile((1 + confidence) / 2) * math.sqrt(at_margin)
    if in_truth <= 0:
        return 1.0 if distance > 0 else 0.0
    return float(ndtr(distance / math.sqrt(in_truth)))


def share_power(limit: float, share: float, documents: int, confidence: float = 0.95) -> float:
    """Power of the exact (Clopper-Pearson) interval: that its upper end is below ``limit`` when the truth is ``share``.

    Exact power goes up and down by steps as n grows; this is the least that n or more items have until the next step
    up: with k the largest number of successes that still passes, the binomial probability of at most k at the largest
    n of which that is true.
    """
    _check(documents, confidence)
    if not (0 <= share <= 1 and 0 <= limit <= 1):
        raise ValueError(f"power: found limit {limit} and share {share}, expected shares from 0 to 1")
    tail = (1 - confidence) / 2
    allowed = _successes_allowed(limit, documents, tail)
    if allowed < 0:
        return 0.0
    if limit >= 1:
        return 1.0 if share < 1 else 0.0
    step = _find_first(lambda n: float(bdtr(allowed + 1, n, limit)) < tail, max(documents, allowed + 2))
    return float(bdtr(allowed, (step or documents + 1) - 1, share))


def documents_needed(power: Callable[[int], float], target: float = TARGET) -> int | None:
    """The fewest documents with at least the power ``target``; None if MOST_DOCUMENTS do not reach it."""
    return _find_first(lambda documents: power(documents) >= target, 1)


def closest_limit(power: Callable[[float], float], widest: float, target: float = TARGET) -> float | None:
    """The smallest distance up to ``widest`` at which the power reaches ``target``; None if it does nowhere."""
    if power(widest) < target:
        return None
    low, high = 0.0, widest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if middle > 0 and power(middle) >= target else (middle, high)
    return high


def _successes_allowed(limit: float, documents: int, tail: float) -> int:
    """The most successes of which the exact upper end is still below ``limit``; −1 if not even none are."""
    low, high = -1, documents
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if float(bdtr(middle, documents, limit)) < tail else (low, middle)
    return low


def _find_first(holds: Callable[[int], bool], start: int) -> int | None:
    """The first number from ``start`` on for which a condition holds that then keeps holding."""
    if holds(start):
        return start
    low, step = start, 1
    while not holds(low + step):
        low, step = low + step, 2 * step
        if low > MOST_DOCUMENTS:
            return None
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check(documents: int, confidence: float) -> None:
    if documents < 0 or not 0 < confidence < 1:
        raise ValueError(f"power: found {documents} documents and confidence {confidence}")
