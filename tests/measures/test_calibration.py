from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from pydantic import ValidationError
from sklearn.metrics import brier_score_loss

from harness.measures.calibration import Calibration
from harness.statistics import calibration_error, calibration_shift
from tests.helpers.observed import observe
from tests.helpers.results import by_name, interval, number


def confidences(table: pd.DataFrame, side: str) -> tuple[np.ndarray, np.ndarray]:
    return table[f"{side}_top1_p"].to_numpy(), (table[f"{side}_top1"] == table["target"]).to_numpy()


def test_values_on_both_sides() -> None:
    table = observe(documents=30).table
    found = by_name(Calibration().measure(table))
    for side in ("reference", "variant"):
        sure, right = confidences(table, side)
        assert getattr(found["calibration.ece"], side) == calibration_error(sure, right, 15)
        assert getattr(found["calibration.ece_equal_mass"], side) == calibration_error(sure, right, 15, True)
        assert getattr(found["calibration.brier"], side) == pytest.approx(brier_score_loss(right, sure))
    for name in ("calibration.ece", "calibration.ece_equal_mass", "calibration.brier"):
        assert found[name].change == pytest.approx(number(found[name].variant) - number(found[name].reference))


def test_bins_are_a_setting() -> None:
    table = observe().table
    sure, right = confidences(table, "variant")
    found = by_name(Calibration(bins=4).measure(table))["calibration.ece"]
    assert found.variant == calibration_error(sure, right, 4)
    assert "4 bins of equal width" in found.method


def test_ece_is_shown_without_interval() -> None:
    found = by_name(Calibration().measure(observe().table))
    for name in ("calibration.ece", "calibration.ece_equal_mass"):
        assert found[name].low is found[name].variant_low is None
        assert "no interval" in found[name].method


def test_brier_and_gap_have_paired_document_intervals() -> None:
    seen = observe(documents=30)
    found = by_name(Calibration().measure(seen.table))
    (p, right), (q, after) = confidences(seen.table, "reference"), confidences(seen.table, "variant")
    wanted = {
        "calibration.brier": (q - after) ** 2 - (p - right) ** 2,
        "calibration.gap": (q - after) - (p - right),
    }
    for name, shift in wanted.items():
        fit = sm.OLS(shift, np.ones_like(shift)).fit(cov_type="cluster", cov_kwds={"groups": seen.document}, use_t=True)
        assert found[name].change == pytest.approx(fit.params[0])
        assert (found[name].low, found[name].high) == pytest.approx(fit.conf_int()[0])


def test_over_confidence_has_a_positive_gap() -> None:
    table = observe(noise=0.0).table
    table["variant_top1_p"] = table["variant_top1_p"] ** 0.5
    found = by_name(Calibration().measure(table))["calibration.gap"]
    assert number(found.change) > 0
    assert number(found.low) > 0
    assert found.better == "neither"


def test_rounding_above_one_is_taken_for_one() -> None:
    table = observe(noise=0.0).table
    table.loc[0, ["reference_top1_p", "variant_top1_p"]] = 1 + 1e-7
    assert by_name(Calibration().measure(table))["calibration.brier"].change == 0.0


def test_the_squared_error_is_debiased_and_its_change_has_an_interval() -> None:
    seen = observe(documents=30)
    found = by_name(Calibration(bins=6).measure(seen.table))["calibration.squared_error"]
    reference, variant = confidences(seen.table, "reference"), confidences(seen.table, "variant")
    wanted = calibration_shift(reference, variant, seen.document, 6)
    assert (found.reference, found.variant, found.change) == (wanted.reference, wanted.variant, wanted.change)
    assert (found.low, found.high) == (interval(wanted.interval).low, interval(wanted.interval).high)
    assert "6 bins of equal mass" in found.method
    assert "jackknife" in found.method


def test_rules_may_rest_on_the_debiased_error_and_not_on_the_plain_one() -> None:
    found = by_name(Calibration().measure(observe().table))
    assert found["calibration.squared_error"].not_judged == ""
    for name in ("calibration.ece", "calibration.ece_equal_mass"):
        assert "judge calibration.squared_error" in found[name].not_judged


def test_intervals_of_two_documents_end_where_the_numbers_do() -> None:
    """A t interval of one degree of freedom leaves every range; a Brier score changes by at most 1, a gap by 2."""
    table = observe(documents=2, tokens=20).table
    even = table["document"] == table["document"].min()
    table["reference_top1_p"], table["variant_top1_p"] = 0.99, np.where(even, 0.98, 0.01)
    found = by_name(Calibration().measure(table))
    brier, gap = found["calibration.brier"], found["calibration.gap"]
    assert (brier.low, brier.high) == (-1.0, 1.0)
    assert (brier.variant_low, brier.variant_high) == (0.0, 1.0)
    assert (gap.low, gap.high) == (-2.0, 2.0)


def test_fifteen_bins_unless_told_otherwise() -> None:
    assert Calibration().bins == 15
    assert [Calibration(bins=bins).bins for bins in (1, 1000)] == [1, 1000]
    for bins in (0, 1001):
        with pytest.raises(ValidationError):
            Calibration(bins=bins)
