"""How well confidences agree with outcomes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.statistics.interval import Floats, finite_array


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, equal_mass: bool = False) -> float:
    """Expected calibration error Σ_b (n_b/N) · |accuracy_b − mean confidence_b| (Naeini et al. 2015, Guo et
    al. 2017).

    confidence: probabilities in [0, 1]; correct: booleans. Bins are right-closed, of equal width on [0, 1],
    or cut at the quantiles of the confidences (equal mass; equal confidences share a bin). Empty bins count
    nothing. The order of observations does not change the result. Raises ValueError for no observation,
    values out of range, lengths that differ, or bins < 1.
    """
    sure, right = check_outcomes(confidence, correct)
    if bins < 1:
        raise ValueError(f"calibration error: found {bins} bins, expected at least 1")
    order = np.lexsort((right, sure))
    sure, right = sure[order], right[order]
    member = np.searchsorted(_inner_edges(sure, bins, equal_mass), sure, side="left")
    gaps = np.bincount(member, weights=right - sure, minlength=bins)
    return math.fsum(np.abs(gaps).tolist()) / len(sure)


def brier_scores(confidence: ArrayLike, correct: ArrayLike) -> Floats:
    """(confidence − correct)² of each observation: the Brier score of "the top answer is right" (Brier 1950).

    Raises ValueError for no observation, values out of range and lengths that differ.
    """
    sure, right = check_outcomes(confidence, correct)
    scores: Floats = (sure - right) ** 2
    return scores


def _inner_edges(ordered: Floats, bins: int, equal_mass: bool) -> NDArray[np.float64]:
    if equal_mass:
        return np.unique(np.quantile(ordered, np.arange(1, bins) / bins))
    return np.arange(1, bins) / bins


def check_outcomes(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64 arrays. Raises ValueError for no observation, values out of range, lengths that differ."""
    sure, right = finite_array(confidence, "confidence"), finite_array(correct, "correct")
    if len(sure) == 0 or len(sure) != len(right):
        raise ValueError(f"calibration: found {len(sure)} confidences and {len(right)} outcomes")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"calibration: found confidences from {sure.min()} to {sure.max()}, expected 0 to 1")
    if not np.isin(right, (0.0, 1.0)).all():
        raise ValueError("calibration: found an outcome other than 0 and 1")
    return sure, right
