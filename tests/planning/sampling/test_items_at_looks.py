"""Paired answers that are drawn until a rule about them is decided: how often a drop at the margin itself passes."""

from __future__ import annotations

import numpy as np
import pytest

from harness.planning.sampling.looks import Look
from harness.records import Sequential
from harness.statistics import GroupSequential, Intervals, paired_share_interval, planned_looks

MARGIN, LEAST, MOST = 0.03, 250, 1000
SIZES = planned_looks(LEAST, MOST)
RUNS: dict[Sequential, int] = {"group_sequential": 150, "betting": 40}
NAIVE_RUNS = 600
FALSE = 0.05
"""How often a run may pass that must not, at most."""
ONE_SIDE = 0.025
"""How often it passes if its interval of 95 % errs on that side as often as it says."""


def noise(share: float, runs: int) -> float:
    """Three standard errors of a share."""
    return float(3 * (share * (1 - share) / runs) ** 0.5)


def draw(generator: np.random.Generator, lost: float, gained: float, each: int, alike: float) -> tuple[np.ndarray, ...]:
    """Answers of both sides, and the cluster of each item.

    lost, gained: shares of items that one side alone answers. each: items of a cluster; alike: how often an item has
    the answers of the first of its cluster.
    """
    kinds = generator.choice(3, size=MOST, p=[1 - lost - gained, lost, gained])
    clusters = np.arange(MOST) // each
    copied = generator.random(MOST) < alike
    kinds = np.where(copied, kinds[clusters * each], kinds)
    order = np.random.default_rng(0).permutation(MOST)  # always the same, so that all runs have the same bounds
    kinds, clusters = kinds[order], clusters[order]
    return kinds != 2, kinds != 1, clusters


def looked(method: Sequential, number: int, clusters: np.ndarray) -> Intervals:
    """The intervals at a look."""
    first: dict[int, int] = {}
    known = {item: first.setdefault(cluster, item) for item, cluster in enumerate(clusters.tolist())}
    found = Look(SIZES, number, dict.fromkeys(range(MOST), 1), method, known, "task").intervals()
    assert found is not None
    return found


def passes(method: Sequential, world: tuple[np.ndarray, ...]) -> bool:
    """Whether a rule with the margin passes at any look, and did not fail at one before."""
    first, second, clusters = world
    for number, size in enumerate(SIZES):
        interval = looked(method, number, clusters).paired_share(first[:size], second[:size], clusters[:size])
        assert interval is not None
        if interval.low > -MARGIN:
            return True
        if interval.high < -MARGIN:
            return False
    return False


@pytest.mark.parametrize("method", ["group_sequential", "betting"])
@pytest.mark.parametrize(
    ("lost", "gained", "each", "alike"),
    [(0.03, 0.0, 1, 0.0), (0.05, 0.02, 1, 0.0), (0.03, 0.0, 4, 0.8), (0.06, 0.03, 5, 0.5)],
)
def test_a_drop_as_large_as_the_margin_hardly_ever_passes(
    method: Sequential, lost: float, gained: float, each: int, alike: float
) -> None:
    generator = np.random.default_rng([7, each, int(1000 * lost)])
    share = np.mean([passes(method, draw(generator, lost, gained, each, alike)) for _ in range(RUNS[method])])
    assert share < FALSE + (noise(FALSE, RUNS[method]) if method == "betting" else 0.0)


def test_looking_as_often_with_ordinary_intervals_would_pass_more_often() -> None:
    """What the bounds of the looks are for: the same runs, judged at every look as if it were the only one."""
    generator = np.random.default_rng(11)
    often = 0
    for _ in range(NAIVE_RUNS):
        first, second, clusters = draw(generator, 0.05, 0.02, 1, 0.0)
        found = [paired_share_interval(first[:size], second[:size], clusters[:size]) for size in SIZES]
        often += any(interval is not None and interval.low > -MARGIN for interval in found)
    assert often / NAIVE_RUNS > ONE_SIDE + noise(ONE_SIDE, NAIVE_RUNS)


@pytest.mark.parametrize("method", ["group_sequential", "betting"])
def test_a_variant_that_changes_no_answer_passes_at_the_first_looks(method: Sequential) -> None:
    right = np.ones(MOST, dtype=bool)
    at = [
        size
        for number, size in enumerate(SIZES)
        if (found := looked(method, number, np.arange(MOST)).paired_share(right[:size], right[:size], np.arange(size)))
        and found.low > -MARGIN
    ]
    assert at[0] == LEAST


def test_many_items_that_could_be_drawn_do_not_delay_a_variant_that_changes_no_answer() -> None:
    """The score alone would: at the first of many looks it may spend next to none of the error."""
    right, items = np.ones(240, dtype=bool), np.arange(240)
    intervals = GroupSequential.at([240], 4000, units="items")
    found = intervals.paired_share(right, right, items)
    alone = paired_share_interval(right, right, items, intervals.confidence)
    assert found is not None
    assert alone is not None
    assert alone.low < -MARGIN < found.low


def test_a_look_at_items_says_so() -> None:
    found = GroupSequential.at([250], 1000, units="items").paired_share([True] * 250, [True] * 250, range(250))
    assert found is not None
    assert "Tango score at 99." in found.method
    assert "betting on 250 clusters" in found.method
    assert "look 1 at 250 of at most 1000 items" in found.method
