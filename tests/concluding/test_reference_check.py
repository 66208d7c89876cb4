"""Whether a reference predicts texts: below uniform and below a held-out unigram model, beyond chance."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from harness.concluding.reference_check import explain_weakness
from harness.statistics.unigram import held_out_unigram_nll

VOCABULARY = 50


def table(nll: np.ndarray, documents: np.ndarray, ids: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"document": documents, "target": ids, "reference_nll": nll})


@pytest.fixture
def texts() -> tuple[np.ndarray, np.ndarray]:
    """Documents and tokens of a skewed distribution."""
    chance = np.random.default_rng(1)
    return np.repeat(np.arange(12), 40), np.minimum(chance.geometric(0.2, 480), VOCABULARY) - 1


def test_a_model_below_both_is_fine(texts: tuple[np.ndarray, np.ndarray]) -> None:
    documents, ids = texts
    unigram = held_out_unigram_nll(ids, documents, VOCABULARY)
    assert explain_weakness(table(unigram - 0.5, documents, ids), VOCABULARY) == ""


@pytest.mark.parametrize(("above", "named"), [(0.0, "unigram"), (3.0, "uniform guess among 50 tokens")])
def test_a_model_above_one_is_told_which(texts: tuple[np.ndarray, np.ndarray], above: float, named: str) -> None:
    documents, ids = texts
    unigram = held_out_unigram_nll(ids, documents, VOCABULARY)
    found = explain_weakness(table(unigram + above, documents, ids), VOCABULARY)
    assert "no better than chance" in found
    assert named in found


def test_a_gain_within_its_interval_is_not_enough(texts: tuple[np.ndarray, np.ndarray]) -> None:
    documents, ids = texts
    unigram = held_out_unigram_nll(ids, documents, VOCABULARY)
    gains = np.repeat(np.random.default_rng(2).normal(0.05, 1.0, 12), 40)
    assert gains.mean() > 0
    assert "unigram" in explain_weakness(table(unigram - gains, documents, ids), VOCABULARY)


def test_exactly_uniform_is_weak_and_one_document_shows_nothing(texts: tuple[np.ndarray, np.ndarray]) -> None:
    documents, ids = texts
    uniform = np.full(len(ids), math.log(VOCABULARY))
    assert "a uniform guess" in explain_weakness(table(uniform, documents, ids), VOCABULARY)
    alone = table(np.zeros(len(ids)), np.zeros(len(ids)), ids)
    assert "unknown" in explain_weakness(alone, VOCABULARY)


def test_numbers_that_are_not_finite_are_left_to_the_measures(texts: tuple[np.ndarray, np.ndarray]) -> None:
    documents, ids = texts
    assert explain_weakness(table(np.full(len(ids), np.nan), documents, ids), VOCABULARY) == ""
    assert explain_weakness(table(np.zeros(0), np.zeros(0), np.zeros(0)), VOCABULARY) == ""
