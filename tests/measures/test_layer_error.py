from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from harness.measures.layer_error import NO_ERROR_DB, LayerError
from harness.records import Measurement, Skipped
from tests.helpers.observed import observe_layers
from tests.helpers.results import by_name, ends, measurement, measurements, number, skipped, with_skipped
from tests.helpers.symmetric_intervals import SymmetricIntervals


def test_values_match_the_raw_outputs() -> None:
    table, outputs = observe_layers()
    found = LayerError().measure(table)
    for module, (y, z) in outputs.items():
        if module == "layers.0.norm":
            continue
        entries = by_name(found, module)
        error = np.linalg.norm(y - z) / np.linalg.norm(y)
        assert entries["layers.relative_error"].change == pytest.approx(error)
        assert entries["layers.sqnr_db"].change == pytest.approx(10 * math.log10((y**2).sum() / ((y - z) ** 2).sum()))
        assert entries["layers.cosine"].change == pytest.approx(1 - cosine(y.ravel(), z.ravel()))
        for entry in entries.values():
            assert number(entry.low) < number(entry.change) < number(entry.high)
            assert (entry.n, entry.clusters) == (y.size, len(y))
    assert error != pytest.approx(np.linalg.norm(y - z) / np.linalg.norm(z), rel=1e-3), "relative to the reference"


def test_modules_come_in_order_of_execution_with_their_labels() -> None:
    table, outputs = observe_layers()
    found = measurements(LayerError().measure(table.sample(frac=1, random_state=0)))
    assert [e.labels["module"] for e in found if e.name == "layers.relative_error"] == list(outputs)
    assert found[0].labels == {"module": "layers.0.norm", "kind": "norm", "depth": "0"}


@pytest.mark.parametrize("metric", ["layers.relative_error", "layers.sqnr_db", "layers.cosine"])
def test_intervals_match_the_document_jackknife(metric: str) -> None:
    table, outputs = observe_layers(documents=80, noise=0.3)
    entry = by_name(LayerError().measure_by(table, SymmetricIntervals()), "lm_head")[metric]
    y, z = outputs["lm_head"]

    def value(keep: np.ndarray) -> float:
        a, b = y[keep], z[keep]
        if metric == "layers.cosine":
            return float((a * b).sum()) / math.sqrt((a**2).sum() * (b**2).sum())
        share = ((a - b) ** 2).sum() / (a**2).sum()
        return math.sqrt(share) if metric == "layers.relative_error" else -10 * math.log10(share)

    left_out = np.array([value(np.arange(80) != document) for document in range(80)])
    error = math.sqrt(79 / 80 * ((left_out - left_out.mean()) ** 2).sum())
    low, high = ends(entry)
    assert (high - low) / 2 == pytest.approx(1.99 * error, rel=0.08)


def test_equal_sides_change_nothing_exactly() -> None:
    table, _ = observe_layers(noise=0.0)
    for entry in measurements(LayerError().measure(table)):
        assert entry.change == entry.neutral == entry.low == entry.high
        assert entry.method.startswith("exact")


def test_no_error_has_no_infinite_sqnr() -> None:
    table, _ = observe_layers()
    entry = by_name(LayerError().measure(table), "layers.0.norm")["layers.sqnr_db"]
    assert entry.change == NO_ERROR_DB
    assert "stands for infinity" in entry.method
    largest = 10 * math.log10(np.finfo(float).max) - 10 * math.log10(5e-324)
    assert largest == pytest.approx(NO_ERROR_DB, rel=1e-9)


def test_one_document_has_no_interval_even_without_error() -> None:
    for entry in measurements(LayerError().measure(observe_layers(documents=1)[0])):
        assert entry.low is entry.high is None


def test_zero_reference_is_skipped_by_name() -> None:
    table, _ = observe_layers()
    table.loc[table["module"] == "layers.0.q", ["sum_squared_reference", "dot"]] = 0.0
    found = LayerError().measure(table)
    for metric in ("layers.relative_error", "layers.sqnr_db", "layers.cosine"):
        entry = with_skipped(found, "layers.0.q")[metric]
        assert "layers.0.q is zero" in skipped(entry).reason
    worst = found[-1]
    assert isinstance(worst, Skipped), "a module with an infinite relative error is not passed over"
    assert worst.labels["module"] == "layers.0.q"


def test_zero_variant_has_an_error_but_no_direction() -> None:
    table, _ = observe_layers()
    rows = table["module"] == "layers.0.q"
    table.loc[rows, ["sum_squared_variant", "dot"]] = 0.0
    table.loc[rows, "sum_squared_error"] = table.loc[rows, "sum_squared_reference"]
    found = with_skipped(LayerError().measure(table), "layers.0.q")
    assert measurement(found["layers.relative_error"]).change == 1.0
    assert isinstance(found["layers.cosine"], Skipped)


@pytest.mark.parametrize(
    ("column", "side"),
    [
        ("sum_squared_reference", "reference"),
        ("sum_squared_variant", "variant"),
        ("sum_squared_error", "variant"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_one_module_breaks_that_module_and_the_worst(column: str, side: str, value: float) -> None:
    table, _ = observe_layers()
    table.loc[table.index[table["module"] == "layers.0.q"][3], column] = value
    found = measurements(LayerError().measure(table))
    for entry in by_name(found, "layers.0.q").values():
        assert entry.non_finite == side
    assert found[-1].name == "layers.worst"
    assert found[-1].non_finite == side
    assert by_name(found, "lm_head")["layers.relative_error"].non_finite is None


def test_worst_is_the_largest_block_or_linear_and_its_interval_covers_all() -> None:
    table, _ = observe_layers(documents=40)
    found = LayerError().measure(table)
    worst = found[-1]
    block = by_name(found, "layers.0")["layers.relative_error"]
    head = by_name(found, "lm_head")["layers.relative_error"]
    assert isinstance(worst, Measurement)
    assert worst.labels["module"] == "layers.0"
    assert worst.change == block.change
    assert number(worst.change) < number(head.change), "the head is neither block nor linear"
    assert worst.high == block.high
    assert number(worst.low) < number(block.low), (
        "the largest of several is biased upwards, so its lower end is stricter"
    )


def test_empty_table_is_skipped() -> None:
    found = LayerError().measure(observe_layers()[0].iloc[:0])
    assert [type(entry) for entry in found] == [Skipped] * 4
