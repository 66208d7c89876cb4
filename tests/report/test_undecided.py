"""How many more documents would decide a rule: against intervals of the size that is named."""

from __future__ import annotations

import math

import pytest

from harness.report.undecided import Need, describe_need, describe_remedy, find_need
from harness.rules import Bound, ComparedNumber


def number(value: float, half: float, n: int, exact: bool = False) -> ComparedNumber:
    return ComparedNumber("a number", "", value, value - half, value + half, exact, 0.95, n, "made")


@pytest.mark.parametrize(
    ("value", "bound", "outcome"),
    [
        (0.9, Bound("", upper=1.0), "pass"),
        (1.1, Bound("", upper=1.0), "fail"),
        (1.1, Bound("", lower=1.0), "pass"),
        (0.9, Bound("", lower=1.0), "fail"),
        (0.2, Bound("", lower=0.0, upper=1.0), "pass"),
    ],
)
def test_the_number_named_is_the_first_whose_interval_leaves_the_limit(
    value: float, bound: Bound, outcome: str
) -> None:
    half, seen = 0.31, 50
    need = find_need(number(value, half, seen), bound, None)
    assert need is not None
    assert (need.outcome, need.seen) == (outcome, seen)
    distance = min(abs(value - limit) for limit in (bound.lower, bound.upper) if limit is not None)
    assert half * math.sqrt(seen / need.documents) < distance
    assert half * math.sqrt(seen / (need.documents - 1)) >= distance


def test_there_is_none_where_more_documents_are_not_what_lacks() -> None:
    bound = Bound("", upper=1.0)
    assert find_need(number(0.5, 0.1, 50), bound, None) is None, "the interval crosses nothing"
    assert find_need(number(1.0, 0.1, 50), bound, None) is None, "the estimate is the limit"
    assert find_need(number(1.0 - 1e-9, 0.1, 50), bound, None) is None, "beyond any sample"
    assert find_need(number(0.9, 0.3, 50, exact=True), bound, None) is None, "counted"


def test_min_documents_is_a_need_of_its_own_and_a_floor_of_the_other() -> None:
    bound = Bound("", upper=1.0)
    assert find_need(number(0.5, 0.1, 50), bound, 80) == Need(80, 50, None)
    assert find_need(number(0.9, 0.11, 50), bound, 800) == Need(800, 50, "pass")
    assert find_need(number(0.5, 0.1, 50), bound, 50) is None


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
    assert describe_remedy(Need(9, 4, "pass"), "items", {})[0] == "In the suite ask for 9 items or more, then run"
