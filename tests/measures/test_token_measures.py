"""What holds for every measure of the tokens table."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import MeasureError
from harness.measures import Measure
from harness.measures.calibration import Calibration
from harness.measures.divergence import Divergence
from harness.measures.logits import Logits
from harness.measures.perplexity import Perplexity
from harness.records import Skipped
from tests.helpers.observed import observe
from tests.helpers.results import ends, measurements, skipped
from tests.helpers.unnamed import without_names

ALL: list[Measure] = [Logits(), Divergence(), Perplexity(), Calibration()]
ids = [type(measure).__name__ for measure in ALL]
every = pytest.mark.parametrize("measure", ALL, ids=ids)


@every
def test_yields_every_declared_metric_once(measure: Measure) -> None:
    found = measurements(measure.measure(observe().table[list(measure.columns or ())]))
    assert [entry.name for entry in found] == [metric.name for metric in measure.produces()]
    for entry, metric in zip(found, measure.produces(), strict=True):
        assert (entry.unit, entry.better, entry.neutral) == (metric.unit, metric.better, metric.neutral)
        assert entry.clusters == 24
        assert entry.n == len(observe().table)


@every
def test_equal_sides_change_nothing_exactly(measure: Measure) -> None:
    for entry in measurements(measure.measure(observe(noise=0.0).table)):
        assert entry.change == entry.neutral
        assert entry.reference == entry.variant


@every
def test_no_token_is_skipped(measure: Measure) -> None:
    found = measure.measure(observe().table.iloc[:0])
    assert [type(entry) for entry in found] == [Skipped] * len(measure.produces())
    assert all("no token" in skipped(entry).reason for entry in found)


@every
def test_one_document_has_no_interval(measure: Measure) -> None:
    for entry in measurements(measure.measure(observe(documents=1).table)):
        assert entry.low is entry.high is entry.variant_low is entry.variant_high is None


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["reference", "variant"])
def test_non_finite_numbers_name_their_side_and_are_not_averaged(measure: Measure, side: str, value: float) -> None:
    table = observe().table
    table.loc[7, f"{side}_nll"] = value
    table.loc[7, "kl"] = value
    found = measurements(measure.measure(table))
    assert [entry.non_finite for entry in found] == [side] * len(measure.produces())
    assert all(entry.change is entry.variant is entry.reference is entry.low is None for entry in found)
    assert f"1 of {len(table)} tokens" in found[0].method
    assert json.loads(found[0].model_dump_json())["change"] is None, "JSON knows no NaN"


@every
def test_both_sides_non_finite_blames_the_reference(measure: Measure) -> None:
    table = observe().table
    table.loc[3, ["reference_nll", "variant_nll"]] = np.nan
    assert {entry.non_finite for entry in measurements(measure.measure(table))} == {"reference"}


@every
def test_dead_variant_is_seen_although_argmax_of_nan_is_a_token(measure: Measure) -> None:
    table = observe().table
    table["variant_nll"] = np.nan
    table["variant_top1_p"] = np.nan
    table["variant_top1"] = table["reference_top1"]
    assert {entry.non_finite for entry in measurements(measure.measure(table))} == {"variant"}


@every
def test_impossible_probabilities_are_errors(measure: Measure) -> None:
    for column, value in (("variant_nll", -0.01), ("reference_top1_p", 1.01), ("variant_top1_p", -0.2)):
        table = observe().table
        table.loc[0, column] = value
        with pytest.raises(MeasureError, match=column):
            measure.measure(table)


@every
def test_a_missing_column_is_named(measure: Measure) -> None:
    with pytest.raises(MeasureError, match="variant_nll"):
        measure.measure(observe().table.drop(columns="variant_nll"))


@every
@given(seed=st.integers(0, 1000), documents=st.integers(2, 26))
@settings(max_examples=6, deadline=None)
def test_order_of_rows_and_numbering_of_documents_change_no_bit(measure: Measure, seed: int, documents: int) -> None:
    table = observe(documents=documents, tokens=12, seed=seed).table
    generator = np.random.default_rng(seed)
    shuffled = table.iloc[generator.permutation(len(table))].copy()
    shuffled["document"] = generator.permutation(documents)[shuffled["document"]]
    assert without_names(measure.measure(table)) == without_names(measure.measure(shuffled))


@every
def test_a_document_is_the_unit_not_a_token(measure: Measure) -> None:
    """A table whose rows are copied within their documents says nothing new, and its intervals stay."""
    table = observe(documents=30).table
    double = table.loc[table.index.repeat(2)]
    for once, twice in zip(measurements(measure.measure(table)), measurements(measure.measure(double)), strict=True):
        if "quantile" in once.method:
            continue
        assert once.change == pytest.approx(twice.change)
        if once.low is not None and "Korn" not in once.method:
            (low, high), (again_low, again_high) = ends(once), ends(twice)
            assert again_high - again_low == pytest.approx(high - low, rel=1e-6)
