"""Allocation against trying everything, and against a solver for mixed-integer programs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from harness.numerics.allocation import Allocation, Costs, Sizes, minimize_cost, minimize_size

COST = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, 7.5, 1e-6, float("inf")])


def everything(costs: Costs, sizes: Sizes) -> list[tuple[float, int]]:
    """Cost and size of every allocation."""
    rows = range(len(costs))
    found = []
    for options in product(range(costs.shape[1]), repeat=len(costs)):
        cost = 0.0
        for row in rows:
            cost += float(costs[row, options[row]])
        found.append((cost, sum(int(sizes[row, options[row]]) for row in rows)))
    return [pair for pair in found if np.isfinite(pair[0])]


def check(found: Allocation, costs: Costs, sizes: Sizes) -> None:
    chosen = list(enumerate(found.options))
    assert found.size == sum(int(sizes[at]) for at in chosen)
    assert found.cost == pytest.approx(sum(float(costs[at]) for at in chosen), rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_that_fits_is_cheaper_or_as_cheap_and_smaller(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    count = rows * columns
    costs = np.array(data.draw(st.lists(COST, min_size=count, max_size=count))).reshape(rows, columns)
    sizes = np.array(data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))).reshape(rows, columns)
    limit = data.draw(st.integers(0, 9 * rows))
    most = data.draw(st.sampled_from([0.0, 0.5, 2.0, 9.0, 100.0]))
    all_of_them = everything(costs, sizes)

    cheapest = minimize_cost(costs, sizes, limit)
    fitting = [(cost, size) for cost, size in all_of_them if size <= limit]
    assert (cheapest is None) == (not fitting)
    if cheapest:
        check(cheapest, costs, sizes)
        assert (cheapest.cost, cheapest.size) == min(fitting)

    smallest = minimize_size(costs, sizes, most)
    good = [(size, cost) for cost, size in all_of_them if cost <= most]
    assert (smallest is None) == (not good)
    if smallest:
        check(smallest, costs, sizes)
        assert (smallest.size, smallest.cost) == min(good)


@pytest.mark.parametrize("seed", range(4))
def test_a_solver_for_integer_programs_agrees(seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = random.choice([64 * 64, 32 * 64, 172 * 64], 60)
    bits = np.array([2, 3, 4, 8])
    sizes = weights[:, None] * bits
    costs = random.lognormal(0, 1.5, (60, 1)) * 4.0**-bits * random.lognormal(0, 0.3, (60, 4))
    limit = int(4.1 * weights.sum())
    found = minimize_cost(costs, sizes, limit)
    assert found is not None
    check(found, costs, sizes)
    assert found.size <= limit
    once, unit = np.kron(np.eye(60), np.ones(4)), 256  # Divides every size, so that all numbers are small integers.
    solved = milp(
        costs.ravel() * 1e6,
        integrality=np.ones(240),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(once, 1, 1),
            LinearConstraint(sizes.reshape(1, -1) // unit, -np.inf, limit // unit),
        ],
        options={"mip_rel_gap": 0},
    )
    assert found.cost == pytest.approx(solved.fun / 1e6, rel=1e-9)
    smallest = minimize_size(costs, sizes, found.cost * (1 + 1e-12))
    assert smallest is not None
    assert smallest.options == found.options


def test_ties_are_broken_by_size_and_then_always_alike() -> None:
    costs, sizes = np.zeros((3, 3)), np.array([[4, 2, 2]] * 3, np.int64)
    assert minimize_cost(costs, sizes, 100) == Allocation((1, 1, 1), 0.0, 6)


def test_infinite_costs_are_never_chosen() -> None:
    costs, sizes = np.array([[np.inf, 5.0], [1.0, np.inf]]), np.array([[1, 9], [2, 1]], np.int64)
    assert minimize_cost(costs, sizes, 100) == Allocation((1, 0), 6.0, 11)
    assert minimize_cost(costs, sizes, 10) is None
    assert minimize_size(np.full((1, 2), np.inf), np.ones((1, 2), np.int64), 1e9) is None


@pytest.mark.parametrize("bad", [np.array([[np.nan]]), np.array([[-1.0]])])
def test_costs_that_are_none_are_refused(bad: Costs) -> None:
    with pytest.raises(ValueError, match="negative or NaN"):
        minimize_cost(bad, np.ones((1, 1), np.int64), 1)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(2, 1\)"):
        minimize_cost(np.ones((1, 2)), np.ones((2, 1), np.int64), 1)
