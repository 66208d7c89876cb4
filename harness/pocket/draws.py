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
    joined = "/".join(str(part) for part in address)
    return int.from_bytes(hashlib.sha256(joined.encode("utf-8")).digest()[:8], "big")


@cache
def _zipf_sums(count: int, offset: float) -> tuple[float, ...]:
    """Running sums of the Zipf-Mandelbrot weights 1 / (rank + offset), rank = 0, 1, …"""
    # Plain division: correctly rounded by IEEE 754 everywhere, which a general power is not.
    return tuple(accumulate(1.0 / (rank + offset) for rank in range(count)))


class Draws:
    """A stream of random draws; `nats` is the sum of -log p over all draws so far."""

    def __init__(self, *address: object) -> None:
        self._random = random.Random(digest(*address))
        self.nats = 0.0

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        hit = self._random.random() < probability
        self.nats -= math.log(probability if hit else 1.0 - probability)
        return hit

    def draw_below(self, count: int) -> int:
        """A uniform integer in 0 … count - 1."""
        self.nats += math.log(count)
        return int(self._random.random() * count)

    def draw_between(self, low: int, high: int) -> int:
        """A uniform integer in low … high, both included."""
        return low + self.draw_below(high - low + 1)

    def zipf(self, options: Sequence[T], offset: float = 1.0) -> T:
        """One option, with Zipf-like weights that decrease with its rank: 1 / (rank + offset)."""
        return options[self._pick(_zipf_sums(len(options), offset))]

    def choose_weighted(self, options: Sequence[tuple[T, float]]) -> T:
        """One option of a table of (option, weight)."""
        return options[self._pick(tuple(accumulate(weight for _, weight in options)))][0]

    def choose_several(self, options: Sequence[T], count: int, offset: float = 1.0) -> list[T]:
        """`count` different options in the order drawn, each Zipf-weighted among the remaining ones."""
        rest = list(options)
        return [rest.pop(self._pick(_zipf_sums_without(options, rest, offset))) for _ in range(count)]

    def shuffle(self, items: Sequence[T]) -> list[T]:
        """The items in a uniformly random order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.draw_below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def _pick(self, sums: Sequence[float]) -> int:
        total = sums[-1]
        index = min(bisect_right(sums, self._random.random() * total), len(sums) - 1)
        weight = sums[index] - (sums[index - 1] if index else 0.0)
        self.nats -= math.log(weight / total)
        return index


def _zipf_sums_without(options: Sequence[T], rest: Sequence[T], offset: float) -> Sequence[float]:
    """Cumulative weights of the remaining options; every option keeps the weight of its original rank."""
    if len(rest) == len(options):
        return _zipf_sums(len(options), offset)
    left = iter(rest)
    wanted = next(left)
    weights: list[float] = []
    for rank, option in enumerate(options):
        if option == wanted:
            weights.append(1.0 / (rank + offset))
            wanted = next(left, wanted)
            if len(weights) == len(rest):
                break
    return tuple(accumulate(weights))
