"""The measure ``calibration_data`` on tables made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from harness.errors import MeasureError
from harness.measures.calibration_data import CalibrationData, jensen_shannon
from harness.records import Measurement, Skipped

Row = tuple[str, int, str, int, int, int]


def table(*rows: Row) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["part", "document", "module", "token", "count", "total"])


def tokens(part: str, documents: np.ndarray) -> list[Row]:
    """documents: counts [documents, vocabulary]."""
    return [
        (part, int(d), "", int(t), int(documents[d, t]), int(documents[d].sum()))
        for d, t in zip(*np.nonzero(documents), strict=True)
    ]


def whole(rng: np.random.Generator, documents: int = 12) -> list[Row]:
    rows: list[Row] = [("overlap", d, "", -1, int(d in (3, 7)) * 5, 40) for d in range(documents)]
    rows += tokens("calibration", rng.integers(0, 9, (6, 20)))
    rows += tokens("evaluation", rng.integers(0, 9, (documents, 20)))
    rows += [("range", d, "a", -1, 0, 1000) for d in range(documents)]
    return rows + [("range", d, "b", -1, d, 1000 + d) for d in range(documents)]


def by_name(found: Any) -> dict[str, Any]:
    keys = {id(each): each.name if isinstance(each, Measurement) else each.measure for each in found}
    return {keys[id(each)] + each.labels.get("module", ""): each for each in found}


def test_every_metric_from_one_table() -> None:
    rows = whole(np.random.default_rng(0))
    found = by_name(CalibrationData().measure(table(*rows)))
    overlap = found["calibration_data.overlap"]
    assert (overlap.change, overlap.n) == (2 / 12, 12)
    # Clopper-Pearson at an effective size of 11: the variance is estimated with D/(D - 1).
    low, high = stats.beta.ppf(0.025, 11 / 6, 11 - 11 / 6 + 1), stats.beta.ppf(0.975, 11 / 6 + 1, 11 - 11 / 6)
    assert (overlap.low, overlap.high) == pytest.approx((low, high), rel=1e-6)
    frame = table(*rows)
    vectors = [
        frame[frame["part"] == part].groupby("token")["count"].sum().reindex(range(20), fill_value=0)
        for part in ("calibration", "evaluation")
    ]
    assert found["calibration_data.token_divergence"].change == pytest.approx(jensenshannon(*vectors) ** 2, rel=1e-9)
    assert 0 < found["calibration_data.token_divergence_floor"].change < 0.02
    assert found["calibration_data.outside_rangea"].change == 0
    assert found["calibration_data.outside_rangea"].low is None
    b = found["calibration_data.outside_rangeb"]
    assert b.change == sum(range(12)) / sum(1000 + d for d in range(12))
    assert 0 <= b.low < b.change < b.high
    worst = found["calibration_data.outside_range_worstb"]
    assert (worst.change, worst.low, worst.labels) == (b.change, None, {"module": "b"})
    assert {each.name for each in found.values()} == {metric.name for metric in CalibrationData().produces()}


def test_a_variant_that_was_fitted_to_nothing_is_one_skipped_line() -> None:
    found = CalibrationData().measure(table(("none", 0, "", -1, 0, 0), ("none", 1, "", -1, 0, 0)))
    assert found == [Skipped(measure="calibration_data.*", reason="no step of the variant uses calibration documents")]


def test_calibration_documents_that_stand_there_twice_count_once() -> None:
    rng = np.random.default_rng(1)
    rows = whole(rng)
    again = [row for row in rows if row[0] == "calibration"]
    first, second = (by_name(CalibrationData().measure(table(*each))) for each in (rows, rows + again))
    for name, measurement in first.items():
        assert second[name].change == measurement.change, name


def test_the_order_of_rows_does_not_matter() -> None:
    frame = table(*whole(np.random.default_rng(2)))
    shuffled = frame.sample(frac=1, random_state=0)
    first, second = (by_name(CalibrationData().measure(each)) for each in (frame, shuffled))
    assert {name: m.change for name, m in first.items()} == {name: second[name].change for name in first}


def test_one_document_has_no_halves_and_no_interval() -> None:
    found = by_name(CalibrationData().measure(table(*whole(np.random.default_rng(3), documents=1))))
    assert isinstance(found["calibration_data.token_divergence_floor"], Skipped)
    assert isinstance(found["calibration_data.token_divergence"], Measurement)
    assert found["calibration_data.outside_rangeb"].low is None


def test_what_is_not_there_is_skipped_by_name() -> None:
    rows = [row for row in whole(np.random.default_rng(4)) if row[0] in ("overlap", "calibration")]
    found = by_name(CalibrationData().measure(table(*rows)))
    skipped = {name for name, each in found.items() if isinstance(each, Skipped)}
    assert skipped == {m.name for m in CalibrationData().produces()} - {"calibration_data.overlap"}


def test_a_table_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(MeasureError, match="parts"):
        CalibrationData().measure(table(("none", 0, "", -1, 0, 0), ("overlap", 1, "", -1, 0, 1)))
    with pytest.raises(MeasureError, match="lacks the columns module"):
        CalibrationData().measure(table().drop(columns="module"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=20).filter(
        lambda pairs: all(sum(side) > 0 for side in zip(*pairs, strict=True))
    )
)
def test_jensen_shannon_is_that_of_scipy_symmetric_and_bounded(pairs: list[tuple[int, int]]) -> None:
    p, q = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    found = jensen_shannon(p, q)
    assert found == pytest.approx(float(np.nan_to_num(jensenshannon(p, q))) ** 2, abs=1e-9)
    assert found == pytest.approx(jensen_shannon(q, p), abs=1e-12)
    assert 0 <= found <= np.log(2)
    assert jensen_shannon(p, 3 * p) == pytest.approx(0, abs=1e-12)


def test_texts_without_a_common_token_are_ln_2_apart() -> None:
    assert jensen_shannon(np.array([3.0, 0.0]), np.array([0.0, 8.0])) == pytest.approx(np.log(2), rel=1e-12)
