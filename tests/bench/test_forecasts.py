"""The page of forecasts: its cases can be planned, and a row shows both numbers and their ratio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.forecast.cost import cost
from harness.plan import make_plan
from tests.bench.forecasts import CASES, Row, render, write_case


@pytest.mark.parametrize("name", ["pocket", "0.3M"])
def test_a_case_is_a_variant_file_with_texts_and_tasks(tmp_path: Path, name: str) -> None:
    plan = make_plan(write_case(CASES[name], tmp_path, most=2))
    (suite,) = plan.suites
    assert suite.documents is not None
    assert suite.documents.max == 2
    tasks = next(measure for measure in suite.measures if measure.kind == "tasks")
    assert [size.items for size in tasks.task_sizes()] == [2, 2, 2]
    assert cost(plan, None).seconds is not None


def test_the_cases_grow_in_the_order_of_the_page() -> None:
    shapes = [case.shape for case in CASES.values() if case.shape]
    assert shapes == sorted(shapes)
    assert replace(CASES["pocket"], shape=(1,)).tasks == CASES["15M"].tasks


def test_a_row_shows_forecast_measured_and_their_ratio() -> None:
    text = render([Row("44M", 120.0, 100.0, 1.5e9, 3e9)])
    assert text.endswith("| 44M | 120 | 100 | 1.20 | 1.50 | 3.00 | 0.50 |\n")
