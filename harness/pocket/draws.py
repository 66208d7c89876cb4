"""Random draws that are identical on every machine and Python version, and that track their entropy.

Only `random.Random.random()` is used: its sequence for a given integer seed is guaranteed, while `shuffle`,
`choices` and `sample` may change between Python versions, and `hash()` changes between processes.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")


def digest(*address: object) -> int:
    """A 64-bit number that depends only on the address (SHA-256 of its parts joined by slashes)."""
    joined = "/".join(map(str, address))
    return int.from_bytes(hashlib.sha256(joined.encode("utf-8")).digest()[:8], "big")


@cache
def _zipf_weights(count: int, offset: float) -> tuple[float, ...]:
    """The Zipf-Mandelbrot weights 1 / (rank + offset), rank = 0, 1, …"""
    # Plain division: correctly rounded by IEEE 754 everywhere, which a general power is not.
    return tuple(1.0 / (rank + offset) for rank in range(count))


@cache
def _zipf_sums(count: int, offset: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Running sums of the weights, and the log of each option's probability."""
    sums = tuple(accumulate(_zipf_weights(count, offset)))
    return sums, tuple(_log_probability(sums, index) for index in range(count))


def _log_probability(sums: Sequence[float], index: int) -> float:
    weight = sums[index] - sums[index - 1] if index else sums[0]
    return math.log(weight / sums[-1])


class Draws:
    """A stream of random draws; `nats` is the sum of -log p over all draws so far."""

    def __init__(self, *address: object) -> None:
        self._uniform = random.Random(digest(*address)).random
        self.nats = 0.0

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        hit = self._uniform() < probability
        self.nats -= math.log(probability if hit else 1.0 - probability)
        return hit

    def draw_below(self, count: int) -> int:
        """A uniform integer in 0 … count - 1."""
        self.nats += math.log(count)
        return int(self._uniform() * count)

    def draw_between(self, low: int, high: int) -> int:
        """A uniform integer in low … high, both included."""
        return low + self.draw_below(high - low + 1)

    def zipf(self, options: Sequence[T], offset: float = 1.0) -> T:
        """One option, with Zipf-like weights that decrease with its rank: 1 / (rank + offset)."""
        return options[self._pick_zipf(len(options), offset)]

    def choose_weighted(self, options: Sequence[tuple[T, float]]) -> T:
        """One option of a table of (option, weight)."""
        return options[self._pick(tuple(accumulate(weight for _, weight in options)))][0]

    def choose_several(self, options: Sequence[T], count: int, offset: float = 1.0) -> list[T]:
        """`count` different options in the order drawn, each Zipf-weighted among the remaining ones."""
        rest, weights = list(options), list(_zipf_weights(len(options), offset))
        chosen: list[T] = []
        for _ in range(count):
            index = self._pick(list(accumulate(weights))) if chosen else self._pick_zipf(len(rest), offset)
            del weights[index]  # the others keep those of their ranks
            chosen.append(rest.pop(index))
        return chosen

    def shuffle(self, items: Sequence[T]) -> list[T]:
        """The items in a uniformly random order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.draw_below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def _pick_zipf(self, count: int, offset: float) -> int:
        sums, logs = _zipf_sums(count, offset)
        index = bisect_right(sums, self._uniform() * sums[-1], 0, count - 1)
        self.nats -= logs[index]
        return index

    def _pick(self, sums: Sequence[float]) -> int:
        index = bisect_right(sums, self._uniform() * sums[-1], 0, len(sums) - 1)
        self.nats -= _log_probability(sums, index)
        return index
