"""The debiased change of the calibration error, against its definition and against simulated truth."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.statistics import calibration_error, calibration_shift
from tests.helpers.results import interval

Side = tuple[np.ndarray, np.ndarray]


def logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p / (1 - p)))


def drawn(
    generator: np.random.Generator, documents: int, tokens: int, sharpened: float, own: float = 0.0
) -> tuple[Side, Side, np.ndarray]:
    """A calibrated reference (over documents with effects of their own), and a variant that is surer of its answers."""
    sure = generator.beta(4, 2, (documents, tokens))
    chance = 1 / (1 + np.exp(-logit(sure) - own * generator.normal(size=(documents, 1))))
    right = generator.random(sure.shape) < chance
    surer = 1 / (1 + np.exp(-sharpened * logit(sure)))
    again = np.where(generator.random(sure.shape) < 0.05, generator.random(sure.shape) < chance, right)
    labels = np.arange(documents).repeat(tokens)
    return (sure.ravel(), right.ravel() * 1.0), (surer.ravel(), again.ravel() * 1.0), labels


def by_definition(sides: tuple[Side, Side], labels: np.ndarray, bins: int) -> list[float]:
    """A plain loop over bins and over pairs of different documents."""
    sorted_ = np.sort(np.concatenate([sure for sure, _ in sides]))
    edges = np.unique([sorted_[math.ceil(len(sorted_) * k / bins) - 1] for k in range(1, bins)])
    names, found = np.unique(labels), []
    for sure, right in sides:
        member, total = [sum(x > edge for edge in edges) for x in sure], 0.0
        for bin_ in set(member):
            inside = np.array(member) == bin_
            gap = {name: (sure - right)[inside & (labels == name)].sum() for name in names}
            pairs = sum(gap[one] * gap[other] for one, other in permutations(names, 2))
            total += pairs * len(names) / (len(names) - 1) / inside.sum() / len(sure)
        found.append(total)
    return found


def test_matches_its_definition_and_the_jackknife() -> None:
    reference, variant, labels = drawn(np.random.default_rng(1), 9, 12, 2.0)
    found = calibration_shift(reference, variant, labels, 4)
    wanted = by_definition((reference, variant), labels, 4)
    assert (found.reference, found.variant) == pytest.approx(wanted, rel=1e-9)
    assert found.change == pytest.approx(wanted[1] - wanted[0], rel=1e-9)
    assert found.variant != pytest.approx(by_definition((reference, variant), labels, 5)[1], rel=1e-3)
    edges = np.quantile(np.concatenate([reference[0], variant[0]]), [0.25, 0.5, 0.75], method="inverted_cdf")
    without = [_with_edges((reference, variant), labels, edges, left_out) for left_out in range(9)]
    error = math.sqrt(8 / 9 * np.sum((np.array(without) - np.mean(without)) ** 2))
    half = stats.t.ppf(0.975, 8) * error
    around = interval(found.interval)
    assert (around.low, around.high) == pytest.approx((found.change - half, found.change + half))


def _with_edges(sides: tuple[Side, Side], labels: np.ndarray, edges: np.ndarray, left_out: int) -> float:
    """The change without one document, bins unchanged."""
    kept, totals = labels != left_out, []
    for sure, right in sides:
        member, total = np.searchsorted(edges, sure), 0.0
        for bin_ in np.unique(member[kept]):
            inside = kept & (member == bin_)
            gap = np.array([(sure - right)[inside & (labels == name)].sum() for name in np.unique(labels[kept])])
            total += (gap.sum() ** 2 - (gap**2).sum()) * 8 / 7 / inside.sum() / kept.sum()
        totals.append(total)
    return totals[1] - totals[0]


def test_a_calibrated_model_has_no_error_on_average_whatever_documents_share() -> None:
    generator, plain, debiased = np.random.default_rng(2), [], []
    for _ in range(200):
        reference, variant, labels = drawn(generator, 20, 20, 1.0)
        debiased.append(calibration_shift(reference, variant, labels).reference)
        plain.append(calibration_error(*reference) ** 2)
    assert abs(np.mean(debiased)) < 3 * np.std(debiased) / math.sqrt(200)
    assert np.mean(plain) > 0.002, "the plain error is far from 0 where nothing is wrong"


@pytest.mark.parametrize("documents", [20, 60])
def test_coverage(documents: int) -> None:
    """The variant is truly overconfident; documents have effects of their own. 300 runs: ±2.5 points are noise."""
    generator = np.random.default_rng(documents)
    truth = calibration_shift(*drawn(generator, 20_000, 30, 2.0, own=0.5)).change
    hits = 0
    for _ in range(300):
        found = interval(calibration_shift(*drawn(generator, documents, 30, 2.0, own=0.5)).interval)
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 300 <= 0.985


def test_where_nothing_moved_it_errs_on_the_wide_side() -> None:
    generator, hits = np.random.default_rng(4), 0
    for _ in range(200):
        reference, variant, labels = drawn(generator, 30, 20, 1.0)
        found = interval(calibration_shift(reference, variant, labels).interval)
        hits += found.low <= 0 <= found.high
    assert hits / 200 >= 0.95


def test_equal_sides_change_by_exactly_nothing() -> None:
    reference, _, labels = drawn(np.random.default_rng(5), 10, 10, 1.0)
    found = calibration_shift(reference, reference, labels)
    around = interval(found.interval)
    assert found.change == around.low == around.high == 0.0
    assert "no interval" in around.method


def test_few_documents_give_no_interval() -> None:
    reference, variant, labels = drawn(np.random.default_rng(6), 2, 10, 2.0)
    assert calibration_shift(reference, variant, labels).interval is None
    one = calibration_shift(reference, variant, np.zeros(20))
    assert (one.change, one.interval) == (0.0, None)


@given(seed=st.integers(0, 500), documents=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_order_and_names_of_documents_change_no_bit(seed: int, documents: int) -> None:
    reference, variant, labels = drawn(np.random.default_rng(seed), documents, 5, 1.5)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    renamed = np.array([f"d{name}" for name in generator.permutation(documents)])[labels]
    other, again = ((side[0][order], side[1][order]) for side in (reference, variant))
    assert calibration_shift(reference, variant, labels) == calibration_shift(other, again, renamed[order])


def test_bad_input_is_refused() -> None:
    good = ([0.5, 0.6], [1, 0])
    for reference, labels in ((([0.5], [1]), [0, 1]), (([1.5, 0.1], [1, 0]), [0, 1]), (good, [0])):
        with pytest.raises(ValueError, match="found"):
            calibration_shift(reference, good, labels)
    with pytest.raises(ValueError, match="bins"):
        calibration_shift(good, good, [0, 1], 0)
