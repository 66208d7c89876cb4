"""Allocation: one option for each of many items, at the least cost under a limit to their size, or the other way round.

This is the multiple-choice knapsack problem. It is solved exactly: after each item, of all ways to choose so far only
those are kept that no other beats in both size and cost. Their number is bounded by the number of different sizes,
which is small for models: modules have few shapes, and sizes are multiples of a large common divisor.

A general solver (HiGHS) stops at an absolute gap of 1e-6, which divergences of a model are not far above.

Legend: U items, C options of each, S states (undominated choices so far).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
Sizes = NDArray[np.int64]


@dataclass(frozen=True)
class Allocation:
    """The option of every item, what they cost together and how large they are together."""

    options: tuple[int, ...]
    cost: float
    size: int


def cheapest_within(costs_UC: Costs, sizes_UC: Sizes, largest: int) -> Allocation | None:
    """The allocation of least total cost whose total size is at most ``largest``; None if there is none.

    costs: never NaN or negative; an infinite one is never chosen. Ties go to the smaller size, then to the allocation
    that a fixed order meets first, so that equal input gives equal output.
    """
    front = _Front(costs_UC, sizes_UC)
    fitting = np.flatnonzero(front.sizes <= largest)
    return front.allocation(int(fitting[-1])) if len(fitting) else None


def smallest_within(costs_UC: Costs, sizes_UC: Sizes, most: float) -> Allocation | None:
    """The allocation of least total size whose total cost is at most ``most``; otherwise as `cheapest_within`."""
    front = _Front(costs_UC, sizes_UC)
    fitting = np.flatnonzero(front.costs <= most)
    return front.allocation(int(fitting[0])) if len(fitting) else None


class _Front:
    """All allocations that no other beats in both size and cost, by ascending size and descending cost."""

    def __init__(self, costs_UC: Costs, sizes_UC: Sizes) -> None:
        if costs_UC.shape != sizes_UC.shape or costs_UC.ndim != 2:
            raise ValueError(f"costs and sizes have the shapes {costs_UC.shape} and {sizes_UC.shape}, wanted [U, C]")
        if not bool((costs_UC >= 0).all()):
            raise ValueError("the costs of an allocation are negative or NaN")
        self.sizes, self.costs = np.zeros(1, np.int64), np.zeros(1)
        self._steps: list[tuple[NDArray[np.int32], NDArray[np.uint8]]] = []
        for costs_C, sizes_C in zip(costs_UC, sizes_UC, strict=True):
            self._add(costs_C, sizes_C)

    def allocation(self, state: int) -> Allocation:
        """The allocation behind a state."""
        cost, size, options = float(self.costs[state]), int(self.sizes[state]), list[int]()
        for parents_S, options_S in reversed(self._steps):
            options.append(int(options_S[state]))
            state = int(parents_S[state])
        return Allocation(tuple(reversed(options)), cost, size)

    def _add(self, costs_C: Costs, sizes_C: Sizes) -> None:
        """Every state with every option of one more item, without what is beaten."""
        options = np.flatnonzero(np.isfinite(costs_C))
        sizes = np.add.outer(self.sizes, sizes_C[options]).ravel()
        costs = np.add.outer(self.costs, costs_C[options]).ravel()
        order = np.lexsort((costs, sizes))  # Stable: of equal ones, the earlier state and option come first.
        lowest = np.minimum.accumulate(costs[order])
        better = np.ones(len(order), bool)
        better[1:] = lowest[1:] < lowest[:-1]
        kept = order[better]
        self.sizes, self.costs = sizes[kept], costs[kept]
        parents, chosen = np.divmod(kept, max(len(options), 1))
        self._steps.append((parents.astype(np.int32), options[chosen].astype(np.uint8)))
