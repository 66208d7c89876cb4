"""The measure ``comparability`` on hand-made comparisons."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.comparability import load_parts
from harness.errors import MeasureError
from harness.measures.comparability import Comparability
from harness.records import Comparison, Difference, Measurement, Omission
from harness.records.comparison import Severity


def difference(part: str, severity: Severity, field: str = "f") -> Difference:
    return Difference(part=part, field=field, reference="1", variant="2", meaning="it matters", severity=severity)


def measured(*differences: Difference, lost: tuple[Omission, ...] = ()) -> dict[str, Measurement]:
    comparison = Comparison.of("folders", False, ("configuration",), differences, lost)
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
    found = measured(lost=(Omission(part="decoder", reason="there is no file"),))
    assert found["comparability.decoder"].method == "exact; not everything could be compared: there is no file"
    assert found["comparability.normalizer"].method == "exact"


def test_a_table_of_another_probe_is_refused() -> None:
    with pytest.raises(MeasureError, match="lacks the columns comparison"):
        Comparability().measure(pd.DataFrame({"other": [1]}))
