"""How many more documents would decide a rule: against intervals of the size that is named."""

from __future__ import annotations

import math

import pytest

from harness.report.drawing.charts import Limited
from harness.report.undecided import Need, describe_need, describe_remedy, find_need

Bounds = tuple[float | None, float | None]


def number(value: float, half: float, bounds: Bounds = (None, 1.0)) -> Limited:
    return Limited(value, (value - half, value + half), bounds, "inconclusive", "a number")


@pytest.mark.parametrize(
    ("value", "bounds", "outcome"),
    [
        (0.9, (None, 1.0), "pass"),
        (1.1, (None, 1.0), "fail"),
        (1.1, (1.0, None), "pass"),
        (0.9, (1.0, None), "fail"),
        (0.2, (0.0, 1.0), "pass"),
    ],
)
def test_the_number_named_is_the_first_whose_interval_leaves_the_limit(
    value: float, bounds: Bounds, outcome: str
) -> None:
    half, seen = 0.31, 50
    need = find_need(number(value, half, bounds), seen, None)
    assert need is not None
    assert (need.outcome, need.seen) == (outcome, seen)
    distance = min(abs(value - limit) for limit in bounds if limit is not None)
    assert half * math.sqrt(seen / need.documents) < distance
    assert half * math.sqrt(seen / (need.documents - 1)) >= distance


def test_there_is_none_where_more_documents_are_not_what_lacks() -> None:
    assert find_need(number(0.5, 0.1), 50, None) is None, "the interval crosses nothing"
    assert find_need(number(1.0, 0.1), 50, None) is None, "the estimate is the limit"
    assert find_need(number(1.0 - 1e-9, 0.1), 50, None) is None, "beyond any sample"
    assert find_need(Limited(0.9, None, (None, 1.0), "pass", "a number"), 50, None) is None, "no interval"


def test_min_documents_is_a_need_of_its_own_and_a_floor_of_the_other() -> None:
    assert find_need(number(0.5, 0.1), 50, 80) == Need(80, 50, None)
    assert find_need(number(0.9, 0.11), 50, 800) == Need(800, 50, "pass")
    assert find_need(number(0.5, 0.1), 50, 50) is None


def test_it_is_said_with_the_command() -> None:
    assert describe_need(Need(330, 150, "pass"), "items") == (
        "About 180 more items (330 in all) would decide it, as a pass if the estimate stays where it is."
    )
    assert describe_need(Need(80, 50, None), "documents") == (
        "Needs 30 more documents (80 in all), as the rule's min_documents asks."
    )
    asked = {"source": "mine.yaml", "suites": [{"name": "core"}]}
    documents = describe_remedy(Need(330, 150, "pass"), "documents", asked)
    assert documents == ("In suite core ask for documents: {max: 330}, then run", "harness check mine.yaml")
    cut = describe_remedy(Need(330, 150, "pass"), "items", asked, "not_worse tasks.sums.accuracy")
    assert cut[0] == (
        "No more items were drawn, because not_worse tasks.sums.accuracy had failed: repair that, or write items: "
        "{after_failure: continue} in suite core, then run"
    )
    assert cut[1] == documents[1]
    assert "after_failure" not in describe_remedy(Need(330, 150, "pass"), "documents", asked, "x")[0]
    assert describe_remedy(Need(9, 4, "pass"), "items", {})[0] == "In the suite ask for 9 items or more, then run"
