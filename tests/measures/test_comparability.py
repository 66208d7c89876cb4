"""The measure ``comparability`` on hand-made comparisons."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.comparability import load_parts
from harness.errors import MeasureError
from harness.measures.comparability import Comparability
from harness.records import Comparison, Difference, Measurement, Omission, Skipped
from harness.records.comparison import Severity


def difference(part: str, severity: Severity, field: str = "f") -> Difference:
    return Difference(part=part, field=field, reference="1", variant="2", meaning="it matters", severity=severity)


def measured(*differences: Difference) -> dict[str, Measurement]:
    comparison = Comparison.of("folders", False, ("configuration",), differences)
    found = Comparability().measure(pd.DataFrame({"comparison": [comparison.model_dump_json()]}))
    assert all(isinstance(m, Measurement) for m in found)
    return {m.name: m for m in found if isinstance(m, Measurement)}


def test_every_part_is_a_metric_and_equal_sides_have_none() -> None:
    found = measured()
    assert found.keys() == {metric.name for metric in Comparability.metrics}
    assert {f"comparability.{part.kind}" for part in load_parts()} < found.keys()
    assert {(m.change, m.low, m.high, m.basis) for m in found.values()} == {(0.0, 0.0, 0.0, "counted")}


def test_differences_are_counted_by_part_and_by_severity() -> None:
    found = measured(
        difference("configuration", "beyond_inputs"),
        difference("configuration", "beyond_inputs", "g"),
        difference("configuration", "informative", "h"),
        difference("stop_tokens", "at_once"),
    )
    counts = {name.partition(".")[2]: m.change for name, m in found.items() if m.change}
    assert counts == {"configuration": 2, "stop_tokens": 1, "at_once": 1, "beyond_inputs": 2}
    assert "f: 1 → 2, it matters" in found["comparability.stop_tokens"].method


def test_a_part_that_could_not_be_compared_says_so() -> None:
    lost = (Omission(part="decoder", reason="there is no file"),)
    comparison = Comparison.of("folders", False, ("decoder",), (), lost)
    found = Comparability().measure(pd.DataFrame({"comparison": [comparison.model_dump_json()]}))
    skipped = {each.measure: each for each in found if isinstance(each, Skipped)}
    assert skipped.keys() == {f"comparability.{each}" for each in ("decoder", "at_once", "beyond_inputs")}
    assert {each.reason for each in skipped.values()} == {"not everything could be compared: there is no file"}
    assert all(each.unsupported for each in skipped.values())


def test_a_difference_counts_where_the_rest_could_not_be_compared() -> None:
    comparison = Comparison.of(
        "folders",
        False,
        ("decoder",),
        (difference("decoder", "at_once"),),
        (Omission(part="decoder", reason="there is no file"),),
    )
    found = Comparability().measure(pd.DataFrame({"comparison": [comparison.model_dump_json()]}))
    counts = {each.name: each for each in found if isinstance(each, Measurement) and each.change}
    assert counts.keys() == {"comparability.decoder", "comparability.at_once"}
    assert "not everything could be compared: there is no file" in counts["comparability.decoder"].method
    assert [each.measure for each in found if isinstance(each, Skipped)] == ["comparability.beyond_inputs"]


def test_a_table_of_another_probe_is_refused() -> None:
    with pytest.raises(MeasureError, match="lacks the columns comparison"):
        Comparability().measure(pd.DataFrame({"other": [1]}))
