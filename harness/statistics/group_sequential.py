"""Looking at data several times without erring more often: looks planned beforehand share the error of one interval.

Lan & DeMets 1983: a function says how much of the error may be spent when a share of the documents has been seen; the
bound of every look is then the one that spends just this share, by the joint law of all looks so far (Armitage,
McPherson & Rowe 1969; Jennison & Turnbull, Group Sequential Methods, chapters 7, 9 and 19). An interval at each look
with this bound in place of the ordinary quantile is a repeated confidence interval: together they all hold the truth as
often as one ordinary interval does, so nothing is lost by stopping at any of them, for any reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from harness.statistics.bounded import paired_share_interval
from harness.statistics.interval import Floats, Interval
from harness.statistics.intervals import Intervals
from harness.statistics.proportions import binomial_confidence_sequence

LOOKS = 12
"""How often a growing sample is looked at, at most: with 6 a clear case waits for a look up to twice the documents that
it needed, with more than 12 hardly sooner, while every interval gets wider.
"""
LEAST_GROWTH = 1.25
"""By how much a sample grows from one look to the next, at least: less says next to nothing new."""
BET = 0.3
"""The part of the error of paired shares that is spent on bets. Without any, 365 items decide a margin of three points
where no answer changed and 4,000 could be drawn, with it 230; one with many changes takes hardly more than before."""
POWER = 1.5
"""The spending function is α t^POWER (Kim & DeMets 1987). 1 is close to Pocock's bounds, 3 to those of O'Brien and
Fleming, which spend so little at the first looks that damage must be enormous to be seen there.
"""
_NODES = 400
_FAR = 9.0
"""Deviations beyond which nothing is integrated."""

Spending = Callable[[float], float]
"""From the share of the sample that was seen, in (0, 1], to the share of the error that may be spent; 1 at 1."""


def spend(share: float) -> float:
    """The share of the error that may be spent once this share of the sample was seen."""
    return float(share**POWER)


def planned_looks(least: int, most: int) -> tuple[int, ...]:
    """After how many documents to look: from ``least`` to ``most``, each time about the same factor more.

    A factor rather than a number, because nobody knows beforehand how clear a case will be. Raises ValueError unless
    1 ≤ least ≤ most.
    """
    if not 1 <= least <= most:
        raise ValueError(f"looks: found {least} to {most} documents, expected 1 <= least <= most")
    steps = min(LOOKS - 1, int(math.log(most / least) / math.log(LEAST_GROWTH) + 1e-9))
    if steps < 1:
        return (most,) if least == most else (least, most)
    return tuple(sorted({round(least * (most / least) ** (step / steps)) for step in range(steps + 1)}))


def drop_repeated_looks(sizes: Sequence[int], clusters: Sequence[int]) -> tuple[int, ...]:
    """The looks that see a cluster which no look before them saw, and the last one: copies alone are no further look.

    sizes: how many are seen at each look. clusters: of all that can be seen, in order.
    """
    seen = [len(set(clusters[:size])) for size in sizes]
    later = [*seen[1:], seen[-1] + 1]
    return tuple(size for size, now, then in zip(sizes, seen, later, strict=True) if now < then)


def look_bounds(shares: Sequence[float], error: float, spending: Spending = spend) -> tuple[float, ...]:
    """Bounds of a standard normal statistic at each look, so that it ever exceeds one with probability ``error``.

    shares: of the whole sample that was seen at each look, increasing, at most 1. At look k the statistic has
    independent increments in ``shares`` (a mean, times the root of the share); the probability of exceeding a bound
    first at look k is error · (spending(share_k) − spending(share_{k−1})). Raises ValueError for shares that do not
    increase from above 0 to at most 1, and for an error outside (0, 1).
    """
    return _bounds(tuple(shares), error, tuple(spending(share) for share in shares))


@lru_cache(maxsize=4096)
def _bounds(shares: tuple[float, ...], error: float, used: tuple[float, ...]) -> tuple[float, ...]:
    if not shares or not all(a < b for a, b in zip((0.0, *shares), (*shares, math.inf), strict=True)) or shares[-1] > 1:
        raise ValueError(f"looks: found the shares {shares}, expected some that increase and are at most 1")
    if not 0 < error < 1:
        raise ValueError(f"looks: found an error of {error}, expected one between 0 and 1")
    bounds: list[float] = []
    nodes, weights = np.zeros(1), np.ones(1)  # where the sum is, and with what probability, if no look stopped it
    for share, before, now, then in zip(shares, (0.0, *shares), used, (0.0, *used), strict=False):
        step = math.sqrt(share - before)
        edge = _edge(nodes, weights, step, error * (now - then), math.sqrt(share))
        bounds.append(edge / math.sqrt(share))
        nodes, weights = _carry(nodes, weights, step, edge, math.sqrt(share))
    return tuple(bounds)


def _edge(nodes: Floats, weights: Floats, step: float, wanted: float, deviation: float) -> float:
    """The value that the sum exceeds with probability ``wanted`` after a step of this deviation (by bisection)."""
    low, high = -_FAR * deviation, 40.0 * deviation
    while low < (middle := (low + high) / 2) < high:
        beyond = float((weights * ndtr((nodes - middle) / step)).sum())
        low, high = (middle, high) if beyond > wanted else (low, middle)
    return high


def _carry(nodes: Floats, weights: Floats, step: float, edge: float, deviation: float) -> tuple[Floats, Floats]:
    """The law of the sum after the step where it stays below the edge, as points of Gauss and Legendre."""
    points, scale = _legendre()
    low = min(-_FAR * deviation, edge - step)
    half = (edge - low) / 2
    after = low + half * (points + 1)
    density = np.exp(-(((after[:, None] - nodes[None, :]) / step) ** 2) / 2) @ weights / (step * math.sqrt(2 * math.pi))
    return after, density * scale * half


@lru_cache(maxsize=1)
def _legendre() -> tuple[Floats, Floats]:
    """Points and weights of Gauss and Legendre, which take longer than all that is done with them."""
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    return points, weights


@dataclass(frozen=True)
class GroupSequential(Intervals):
    """The ordinary interval of every kind, at the confidence that one look of several has.

    It assumes of the estimator what the ordinary interval does. Whatever the laws of the looks have to do with each
    other, all of them together err at most as often as the sum of what each may.
    """

    together: float = 0.95
    look: str = ""
    paired: float = 0.95
    """The confidence of this look for paired shares, which spend a part of their error otherwise."""

    @classmethod
    def at(cls, seen: Sequence[int], most: int, together: float = 0.95, units: str = "documents") -> Self:
        """The intervals of the last of the looks at ``seen`` documents, of ``most`` that there could be.

        together: how often those of all looks hold the truth, all at once. units: what they are, if not documents.
        """
        shares, error = [count / most for count in seen], (1 - together) / 2
        bound, wider = (look_bounds(shares, part)[-1] for part in (error, (1 - BET) * error))
        look = f"look {len(seen)} at {seen[-1]} of at most {most} {units}, all looks together {100 * together:g} %"
        return cls(float(1 - 2 * ndtr(-bound)), together, look, float(1 - 2 * ndtr(-wider)))

    def add_method(self, interval: Interval | None) -> Interval | None:
        """With the look in its method; one without width is no interval, and stays what it is."""
        if interval is None or interval.low == interval.high:
            return interval
        how = f"{interval.method}, at {100 * self.confidence:.6g} %"
        return Interval(interval.low, interval.high, f"{how}: group-sequential, {self.look}")

    def paired_share(self, first: ArrayLike, second: ArrayLike, clusters: ArrayLike) -> Interval | None:
        """Where two intervals overlap that share the error: the ordinary one at the confidence of this look, and bets.

        Bets hold at every look whatever the looks are (``betting_interval``). They decide sooner where hardly an answer
        changes, which the score of an early look does not, as it may spend next to no error; with many changes it is
        the score that decides.
        """
        from harness.statistics.betting import betting_interval

        score = paired_share_interval(first, second, clusters, self.paired)
        changes = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
        bets = betting_interval(changes, clusters, -1.0, 1.0, confidence=1 - BET * (1 - self.together))
        if score is None or bets is None:
            return None
        method = f"{score.method} at {100 * self.paired:.6g} %, and {bets.method}: group-sequential, {self.look}"
        return Interval(max(score.low, bets.low), min(score.high, bets.high), method)

    def share_of_clusters(self, successes: ArrayLike) -> Interval | None:
        """Valid at every look, planned or not, because the exact interval at the confidence of an early look asks for
        so many clusters without a success that a rare event keeps a run going in which everything else is clear.
        """
        array = np.asarray(successes, dtype=bool)
        if len(array) < 2:
            return None
        found = binomial_confidence_sequence(int(array.sum()), len(array), self.together)
        return found and Interval(found.low, found.high, f"{found.method}, valid at any look; {self.look}")
