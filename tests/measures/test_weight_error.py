"""The measure ``weight_error`` on tables made by hand."""

from __future__ import annotations

from math import nan

import pandas as pd
import pytest

from harness.measures.weight_error import WeightError
from harness.records import Measurement, Skipped

COLUMNS = ["side", "module", "paired", "parameters", "relative_error", "compared", "error_note"]


def table(*rows: tuple[str, str, bool, int, float, float, str]) -> pd.DataFrame:
    reference = ("reference", "a", False, 10, nan, 0.0, "")
    norm = ("variant", "norm", False, 4, nan, 0.0, "")
    frame = pd.DataFrame([reference, norm, *rows], columns=COLUMNS)
    return frame.assign(compressed=False, retrained=False, rounding_error=frame["relative_error"], explained_error=nan)


def test_every_linear_layer_and_the_worst_have_their_error() -> None:
    rows = (("variant", "a", True, 10, 0.125, 1.0, ""), ("variant", "b", True, 20, 0.5, 1.0, ""))
    first, second, worst, _ = WeightError().measure(table(*rows))
    assert isinstance(first, Measurement)
    assert (first.change, first.low, first.high, first.labels, first.n) == (0.125, 0.125, 0.125, {"module": "a"}, 10)
    assert isinstance(worst, Measurement)
    assert (worst.name, worst.change, worst.labels) == ("weights.worst", 0.5, {"module": "b"})
    assert isinstance(second, Measurement)


def test_a_sample_of_inputs_is_not_exact() -> None:
    (found, _, _) = WeightError().measure(table(("variant", "a", True, 10, 0.1, 0.25, "it rounds its inputs")))
    assert isinstance(found, Measurement)
    assert (found.low, found.high) == (None, None)
    assert found.method == "25.0% of the inputs were compared, no interval; it rounds its inputs"


def test_what_cannot_be_compared_is_named_and_spoils_the_worst() -> None:
    rows = (("variant", "a", True, 10, 0.1, 1.0, ""), ("variant", "b", True, 20, nan, 1.0, "was rescaled"))
    first, second, worst, _ = WeightError().measure(table(*rows))
    assert isinstance(first, Measurement)
    assert isinstance(second, Skipped)
    assert (second.reason, second.labels) == ("was rescaled", {"module": "b"})
    assert isinstance(worst, Skipped)
    assert worst.reason == "b, and 0 more: was rescaled"


def test_nothing_to_compare_is_skipped() -> None:
    assert all(isinstance(entry, Skipped) for entry in WeightError().measure(table()))


def compressed(ratios: dict[str, float], explained: float = 0.01, retrained: tuple[str, ...] = ()) -> pd.DataFrame:
    """Compressed modules with so many times the error that their format explains."""
    rows = [("variant", name, True, 10, ratio * explained, 1.0, "") for name, ratio in ratios.items()]
    made = table(*rows)
    inside = made["module"].isin(list(ratios)) & made["paired"]
    return made.assign(
        compressed=inside, explained_error=explained, retrained=made["module"].isin(list(retrained)) & inside
    )


@pytest.mark.parametrize(
    ("ratios", "retrained", "wanted", "module"),
    [
        ({"a": 1.0, "b": 1.0, "c": 30.0, "d": 1.0}, (), 30.0, "c"),
        ({"a": 2.0, "b": 2.0, "c": 30.0, "d": 2.0}, (), 15.0, "c"),
        ({"a": 0.5, "b": 0.5, "c": 3.0, "d": 0.5}, (), 3.0, "c"),
        ({"a": 30.0}, (), 30.0, "a"),
        ({"a": 1.0, "b": 20.0, "c": 20.0, "d": 20.0, "e": 1.0}, ("b", "c", "d"), 1.0, "e"),
    ],
    ids=["one of many", "a method above rounding", "a method below rounding", "alone", "changed by an adapter"],
)
def test_the_outlying_module_is_relative_to_its_format_and_to_the_others(
    ratios: dict[str, float], retrained: tuple[str, ...], wanted: float, module: str
) -> None:
    found = WeightError().measure(compressed(ratios, retrained=retrained))[-1]
    assert isinstance(found, Measurement)
    assert (found.name, found.labels) == ("weights.outlying", {"module": module})
    assert found.change == pytest.approx(wanted)


def test_a_compressed_module_that_cannot_be_compared_leaves_no_outlying_error() -> None:
    rows = compressed({"a": 1.0, "b": 1.0})
    for column in ("rounding_error", "explained_error"):
        broken = rows.copy()
        broken.loc[broken["module"] == "b", column] = nan
        found = WeightError().measure(broken)[-1]
        assert isinstance(found, Skipped)
        assert (found.measure, "b, and 0 more" in found.reason) == ("weights.outlying", True)


def test_nothing_compressed_has_no_outlying_error() -> None:
    found = WeightError().measure(table(("variant", "a", True, 10, 0.1, 1.0, "")))[-1]
    assert isinstance(found, Measurement)
    assert found.change == 1.0
