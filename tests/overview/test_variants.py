"""Groups of comparable variants, the Pareto frontier, and the variant to take."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.overview.variants import COSTS, Group, Variant, find_frontier, group_variants, recommend
from tests.overview.conftest import MakeRun

SIZE = COSTS[0]


def group_of(*runs: object) -> Group:
    return Group(tuple(Variant(run, Path()) for run in runs))  # type: ignore[arg-type]


def test_the_smallest_variant_that_passes_is_recommended(alike: MakeRun) -> None:
    smallest, middle = alike("failing", "fail", 1e6, 0.5), alike("middle", "pass", 2e6, 0.02)
    chosen = recommend(group_of(smallest, alike("large", "pass", 4e6, 0.001), middle))
    assert chosen is not None
    assert chosen.run.name == "middle"


def test_of_equally_small_variants_the_better_one_is_recommended(alike: MakeRun) -> None:
    chosen = recommend(group_of(alike("worse", "pass", 2e6, 0.03), alike("better", "pass", 2e6, 0.02)))
    assert chosen is not None
    assert chosen.run.name == "better"


@pytest.mark.parametrize("verdict", ["fail", "inconclusive", "error"])
def test_nothing_is_recommended_that_does_not_pass(alike: MakeRun, verdict: str) -> None:
    assert recommend(group_of(alike("a", verdict), alike("b", verdict))) is None


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_variant_is_dominated_exactly_if_another_is_no_worse_and_somewhere_better(
    alike: MakeRun, places: list[tuple[int, int]]
) -> None:
    runs = {f"v{i}": alike(f"v{i}", "pass", x * 1e6, y / 100) for i, (x, y) in enumerate(places)}
    points = find_frontier(group_of(*runs.values()), SIZE)
    assert len(points) == len(places)
    by_name = {f"v{i}": place for i, place in enumerate(places)}
    for point in points:
        x, y = by_name[point.variant.run.name]
        better = {n for n, (a, b) in by_name.items() if a <= x and b <= y and (a < x or b < y)}
        assert bool(point.dominated_by) == bool(better)
        assert not point.dominated_by or point.dominated_by in better


def test_a_metric_that_is_better_when_higher_dominates_upwards(alike: MakeRun) -> None:
    runs = [alike("a", "pass", 1e6), alike("b", "pass", 2e6)]
    scores = {"a": 0.9, "b": 0.8}
    higher = [
        run.model_copy(
            update={
                "measurements": tuple(
                    m.model_copy(update={"change": scores[run.name], "low": None, "high": None})
                    for m in run.measurements
                    if m.name == "divergence.top1_agreement"
                )
            }
        )
        for run in runs
    ]
    group = group_of(*higher)
    assert group.quality == "divergence.top1_agreement"
    found = {point.variant.run.name: point.dominated_by for point in find_frontier(group, SIZE)}
    assert found == {"a": "", "b": "a"}


def test_variants_of_other_references_or_documents_stand_apart(alike: MakeRun) -> None:
    one, same = alike("one"), alike("same")
    other = alike("other", reference=one.reference.model_copy(update={"weights_sha256": "ee" * 32}))
    asked = one.asked | {"suites": [{"name": "mine", "documents": {"data": "mine.jsonl"}}]}
    third = alike("third", asked=asked)
    names = [[each.run.name for each in group.variants] for group in group_variants(
        Variant(run, Path()) for run in (one, other, same, third)
    )]  # fmt: skip
    assert names == [["one", "same"], ["other"], ["third"]]
