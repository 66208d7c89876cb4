"""Bit allocation: choose one option per item, minimizing cost under a size limit or size under a cost limit.

This is the multiple-choice knapsack problem, solved exactly: after each item only the Pareto front of all choices so
far (not beaten in both size and cost) is kept. Its length is bounded by the number of different sizes, which is small
for models: modules have few shapes, and sizes are multiples of a large common divisor.

A general solver (HiGHS) stops at an absolute gap of 1e-6, which is not far below the divergences of a model.

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
    """The chosen option of every item, with their total cost and total size."""

    options: tuple[int, ...]
    cost: float
    size: int


def minimize_cost(costs_UC: Costs, sizes_UC: Sizes, largest: int) -> Allocation | None:
    """The allocation of least total cost whose total size is at most ``largest``; None if there is none.

    costs: never NaN or negative; an infinite one is never chosen. Ties go to the smaller size, then to the first
    allocation in a fixed order, so that equal input gives equal output.
    """
    front = _Front(costs_UC, sizes_UC)
    fitting = np.flatnonzero(front.sizes <= largest)
    return front.allocation(int(fitting[-1])) if len(fitting) else None


def minimize_size(costs_UC: Costs, sizes_UC: Sizes, most: float) -> Allocation | None:
    """The allocation of least total size whose total cost is at most ``most``; otherwise as `minimize_cost`."""
    front = _Front(costs_UC, sizes_UC)
    fitting = np.flatnonzero(front.costs <= most)
    return front.allocation(int(fitting[0])) if len(fitting) else None


class _Front:
    """The Pareto front of allocations, by ascending size and descending cost."""

    def __init__(self, costs_UC: Costs, sizes_UC: Sizes) -> None:
        if costs_UC.shape != sizes_UC.shape or costs_UC.ndim != 2:
            raise ValueError(f"costs and sizes have the shapes {costs_UC.shape} and {sizes_UC.shape}, expected [U, C]")
        if not bool((costs_UC >= 0).all()):
            raise ValueError("the costs of an allocation are negative or NaN")
        self.sizes, self.costs = np.zeros(1, np.int64), np.zeros(1)
        self._steps: list[tuple[NDArray[np.int32], NDArray[np.uint8]]] = []
        for costs_C, sizes_C in zip(costs_UC, sizes_UC, strict=True):
            self._add(costs_C, sizes_C)

    def allocation(self, state: int) -> Allocation:
        """Reconstruct the allocation of a state."""
        cost, size, options = float(self.costs[state]), int(self.sizes[state]), list[int]()
        for parents_S, options_S in reversed(self._steps):
            options.append(int(options_S[state]))
            state = int(parents_S[state])
        return Allocation(tuple(reversed(options)), cost, size)

    def _add(self, costs_C: Costs, sizes_C: Sizes) -> None:
        """Extend every state by every option of one more item, then drop dominated states."""
        options = np.flatnonzero(np.isfinite(costs_C))
        sizes = np.add.outer(self.sizes, sizes_C[options]).ravel()
        costs = np.add.outer(self.costs, costs_C[options]).ravel()
        order = np.lexsort((costs, sizes))  # Stable: ties keep the earlier state and option.
        lowest = np.minimum.accumulate(costs[order])
        better = np.ones(len(order), bool)
        better[1:] = lowest[1:] < lowest[:-1]
        kept = order[better]
        self.sizes, self.costs = sizes[kept], costs[kept]
        parents, chosen = np.divmod(kept, max(len(options), 1))
        self._steps.append((parents.astype(np.int32), options[chosen].astype(np.uint8)))
