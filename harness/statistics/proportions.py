"""Intervals of proportions and of paired differences of proportions; none of them collapses at 0 or 1."""

from __future__ import annotations

import math

from scipy.special import bdtr, betaincinv, betaln

from harness.statistics.interval import Interval, z_quantile

_PRIOR = (0.25, 10.0)
"""Of the beta law by which ``binomial_confidence_sequence`` weighs shares. Most of it lies close to 0, because rare
events are what it is for: a share of 5 % is excluded after 83 observations with no success (Clopper-Pearson, which may
be looked at once, needs 72), where the uniform law needs 173."""


def clopper_pearson(successes: float, n: float, confidence: float = 0.95) -> Interval | None:
    """Exact interval of a proportion (Clopper & Pearson 1934). None for n = 0.

    Numbers that are not whole are allowed, for effective sample sizes. Raises ValueError unless 0 ≤ successes
    ≤ n.
    """
    _check(successes, n)
    if n == 0:
        return None
    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Interval(low, high, "Clopper-Pearson")


def binomial_confidence_sequence(successes: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Interval of a share that holds at every n at once, so that one may look as often as one likes.

    It excludes the shares p at which ∫ q^k (1 − q)^(n−k) dBeta(q) / (p^k (1 − p)^(n−k)) has reached 2/(1 − confidence),
    which ever happens to the true one with a probability of at most (1 − confidence)/2 (Ville 1939; Robbins 1970,
    Statistical methods related to the law of the iterated logarithm): each side alone is as sure as one side of an
    ordinary interval. None for n = 0. Raises ValueError unless 0 ≤ successes ≤ n.
    """
    from scipy.optimize import brentq

    _check(successes, n)
    if n == 0:
        return None
    failures, share = n - successes, successes / n
    mixed = float(betaln(_PRIOR[0] + successes, _PRIOR[1] + failures) - betaln(*_PRIOR)) - math.log(
        2 / (1 - confidence)
    )

    def excess(p: float) -> float:
        likelihood = (successes * math.log(p) if successes else 0.0) + (failures * math.log1p(-p) if failures else 0.0)
        return mixed - likelihood

    least, most = 1e-300, 1 - 1e-16
    low = float(brentq(excess, least, share, xtol=1e-15)) if successes and excess(share) < 0 else 0.0
    high = float(brentq(excess, max(share, least), most, xtol=1e-15)) if failures and excess(most) > 0 else 1.0
    return Interval(min(low, share), max(high, share), "beta-binomial confidence sequence")


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> Interval | None:
    """Score interval of a proportion (Wilson 1927). None for n = 0. Raises ValueError unless 0 ≤ successes ≤
    n.
    """
    _check(successes, n)
    if n == 0:
        return None
    share, z2 = successes / n, z_quantile((1 + confidence) / 2) ** 2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if successes == 0 else min(share, max(0.0, center - half))
    high = 1.0 if successes == n else max(share, min(1.0, center + half))
    return Interval(low, high, "Wilson score")


def tango_interval(b: int, c: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Score interval of the paired difference (b − c)/n (Tango 1998). None for n = 0.

    n pairs, b of them right on the first side only, c on the second side only; with the reference first, the
    difference is the drop in accuracy. Right without any discordant pair too: then ± z²/(n + z²).
    Raises ValueError unless b, c ≥ 0 and b + c ≤ n.
    """
    if b < 0 or c < 0 or b + c > n:
        raise ValueError(f"Tango interval: found b = {b}, c = {c}, n = {n}, expected b, c >= 0 and b + c <= n")
    if n == 0:
        return None
    z = z_quantile((1 + confidence) / 2)
    return Interval(-_upper_end(c, b, n, z), _upper_end(b, c, n, z), "Tango score")


def mcnemar_p(b: int, c: int) -> float:
    """Two-sided exact p-value of "b and c are equally likely": 2 P(X ≤ min(b, c)), X ~ Bin(b + c, ½) (McNemar 1947).

    For information: a large one is no evidence that nothing changed. 1 without a discordant pair.
    Raises ValueError unless b, c ≥ 0.
    """
    if b < 0 or c < 0:
        raise ValueError(f"McNemar: found b = {b}, c = {c}, expected b, c >= 0")
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5))) if b + c else 1.0


def tango_score(b: int, c: int, n: int, difference: float) -> float:
    """Score statistic of the hypothesis that the paired difference is ``difference``, in (−1, 1) (Tango
    1998).
    """
    quadratic = 2.0 * n
    linear = -(b + c) + (2.0 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    # The discordance of the second kind that is most likely under the hypothesis.
    root = math.sqrt(max(linear * linear - 4 * quadratic * constant, 0.0))
    likely = (root - linear) / (2 * quadratic) if linear <= 0 else -2 * constant / (root + linear)
    variance = n * (2 * likely + difference * (1 - difference))
    distance = b - c - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _upper_end(b: int, c: int, n: int, z: float) -> float:
    """The difference above (b − c)/n where the score, which falls as the difference grows, reaches −z
    (bisection).
    """
    low, high = (b - c) / n, 1.0
    while low < (middle := (low + high) / 2) < high:
        if tango_score(b, c, n, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def _check(successes: float, n: float) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"proportion: found {successes} of {n}, expected 0 <= successes <= n")
