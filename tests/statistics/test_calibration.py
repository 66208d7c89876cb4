"""The calibration error bin by bin, with confidences on the edges of bins."""

from __future__ import annotations

import math

import pytest

from harness.statistics import brier_scores, calibration_error


def test_bins_are_closed_on_the_right() -> None:
    """In halves, 0.5 belongs to the lower one: gaps of 0.5 − 1 + 0.25 − 0 and of 0.75 − 1, over three."""
    assert calibration_error([0.5, 0.25, 0.75], [1, 0, 1], bins=2) == pytest.approx((0.25 + 0.25) / 3)
    assert calibration_error([0.5, 0.75], [1, 0], bins=2) == pytest.approx((0.5 + 0.75) / 2)
    assert calibration_error([0.5, 0.25], [1, 0], bins=2) == pytest.approx(0.25 / 2)
    assert calibration_error([0.0, 1.0], [1, 0], bins=4) == 1.0


def test_one_bin_compares_the_means() -> None:
    assert calibration_error([0.2, 0.4, 0.9], [0, 1, 1], bins=1) == pytest.approx(2 / 3 - 0.5)
    assert calibration_error([0.2, 0.4, 0.9], [0, 1, 1], bins=1, equal_mass=True) == pytest.approx(2 / 3 - 0.5)


def test_bins_of_equal_mass_are_cut_at_quantiles() -> None:
    """Two of four confidences each; all lie in one bin of equal width."""
    sure, right = [0.91, 0.92, 0.93, 0.94], [1, 1, 0, 0]
    assert calibration_error(sure, right, bins=2) == pytest.approx((0.09 + 0.08 - 0.93 - 0.94) / -4)
    equal = calibration_error(sure, right, bins=2, equal_mass=True)
    assert equal == pytest.approx((0.09 + 0.08 + 0.93 + 0.94) / 4)
    assert calibration_error([0.9] * 4, right, bins=3, equal_mass=True) == pytest.approx(0.4)


def test_fifteen_bins_unless_told_otherwise() -> None:
    sure, right = [1 / 15, 1 / 15 + 1e-9, 0.5], [1, 0, 1]
    assert calibration_error(sure, right) == calibration_error(sure, right, bins=15)
    assert calibration_error(sure, right) != pytest.approx(calibration_error(sure, right, bins=14), rel=1e-3)
    assert calibration_error(sure, right) != pytest.approx(calibration_error(sure, right, bins=16), rel=1e-3)


@pytest.mark.parametrize("bins", [0, -1])
def test_no_bin_is_refused(bins: int) -> None:
    with pytest.raises(ValueError, match=f"found {bins} bins, expected at least 1"):
        calibration_error([0.5], [1], bins=bins)


@pytest.mark.parametrize(
    ("sure", "right", "words"),
    [
        ([], [], "found 0 confidences and 0 outcomes"), ([0.5], [], "found 1 confidences and 0 outcomes"),
        ([0.5, 0.5], [1], "found 2 confidences and 1 outcomes"), ([-0.01], [1], "expected 0 to 1"),
        ([0.5, 1.01], [1, 1], "confidences from 0.5 to 1.01"), ([0.5], [0.5], "outcome other than 0 and 1"),
        ([math.nan], [1], "NaN"),
    ],
)  # fmt: skip
def test_what_is_no_confidence_or_no_outcome_is_refused(sure: list[float], right: list[float], words: str) -> None:
    for estimate in (calibration_error, brier_scores):
        with pytest.raises(ValueError, match=words):
            estimate(sure, right)


def test_brier_scores_are_squares() -> None:
    assert brier_scores([0.0, 0.25, 1.0, 1.0], [0, 1, 1, 0]).tolist() == [0.0, 0.5625, 0.0, 1.0]
