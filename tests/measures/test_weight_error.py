"""The measure ``weight_error`` on tables made by hand."""

from __future__ import annotations

from math import nan

import pandas as pd

from harness.measures.weight_error import WeightError
from harness.records import Measurement, Skipped

COLUMNS = ["side", "module", "paired", "parameters", "relative_error", "compared", "error_note"]


def table(*rows: tuple[str, str, bool, int, float, float, str]) -> pd.DataFrame:
    reference = ("reference", "a", False, 10, nan, 0.0, "")
    norm = ("variant", "norm", False, 4, nan, 0.0, "")
    return pd.DataFrame([reference, norm, *rows], columns=COLUMNS)


def test_every_linear_layer_and_the_worst_have_their_error() -> None:
    rows = (("variant", "a", True, 10, 0.125, 1.0, ""), ("variant", "b", True, 20, 0.5, 1.0, ""))
    first, second, worst = WeightError().measure(table(*rows))
    assert isinstance(first, Measurement)
    assert (first.change, first.low, first.high, first.labels, first.n) == (0.125, 0.125, 0.125, {"module": "a"}, 10)
    assert isinstance(worst, Measurement)
    assert (worst.name, worst.change, worst.labels) == ("weights.worst", 0.5, {"module": "b"})
    assert isinstance(second, Measurement)


def test_a_sample_of_inputs_is_not_exact() -> None:
    (found, _) = WeightError().measure(table(("variant", "a", True, 10, 0.1, 0.25, "it rounds its inputs")))
    assert isinstance(found, Measurement)
    assert (found.low, found.high) == (None, None)
    assert found.method == "25.0% of the inputs were compared, no interval; it rounds its inputs"


def test_what_cannot_be_compared_is_named_and_spoils_the_worst() -> None:
    rows = (("variant", "a", True, 10, 0.1, 1.0, ""), ("variant", "b", True, 20, nan, 1.0, "was rescaled"))
    first, second, worst = WeightError().measure(table(*rows))
    assert isinstance(first, Measurement)
    assert isinstance(second, Skipped)
    assert (second.reason, second.labels) == ("was rescaled", {"module": "b"})
    assert isinstance(worst, Skipped)
    assert worst.reason == "b, and 0 more: was rescaled"


def test_nothing_to_compare_is_skipped() -> None:
    assert all(isinstance(entry, Skipped) for entry in WeightError().measure(table()))
