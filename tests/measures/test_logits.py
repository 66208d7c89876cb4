from __future__ import annotations

import numpy as np
import pytest

from harness.errors import MeasureError
from harness.measures.logits import Logits
from harness.statistics import Intervals
from tests.helpers.observed import observe
from tests.helpers.results import by_name, number


def test_maximum_and_mean_of_the_raw_logits() -> None:
    seen = observe()
    found = by_name(Logits().measure(seen.table))
    difference = np.abs(seen.variant - seen.reference)
    assert found["logits.max_abs_diff"].change == difference.max()
    assert found["logits.mean_abs_diff"].change == pytest.approx(difference.mean())
    mean = found["logits.mean_abs_diff"]
    assert number(mean.low) < number(mean.change) < number(mean.high)


def test_a_maximum_has_no_interval_and_says_so() -> None:
    found = by_name(Logits().measure(observe().table))["logits.max_abs_diff"]
    assert found.low is found.high is None
    assert "no interval" in found.method


def test_a_negative_absolute_difference_is_an_error() -> None:
    table = observe().table
    table.loc[0, "max_abs_diff"] = -1.0
    with pytest.raises(MeasureError, match="max_abs_diff"):
        Logits().measure(table)


def test_the_mean_minds_that_few_documents_may_have_the_large_differences() -> None:
    seen = observe(documents=30, tokens=20)
    found = by_name(Logits().measure(seen.table))["logits.mean_abs_diff"]
    values, documents = seen.table["mean_abs_diff"].to_numpy(), seen.table["document"].to_numpy()
    wanted = Intervals().mean(values, documents, skewed=True)
    assert wanted is not None
    assert (found.low, found.high) == (wanted.low, wanted.high)
    assert "Hall's transformation" in found.method


@pytest.mark.parametrize("column", ["max_abs_diff", "mean_abs_diff"])
def test_no_difference_is_none_and_less_is_an_error(column: str) -> None:
    table = observe().table
    table.loc[0, column] = 0.0
    Logits().measure(table)
    table.loc[0, column] = -1e-12
    with pytest.raises(MeasureError, match=column):
        Logits().measure(table)
