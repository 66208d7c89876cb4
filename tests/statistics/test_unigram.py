"""The held-out unigram model, compared with its definition written out token by token."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from harness.statistics.unigram import held_out_unigram_nll


def by_definition(tokens: list[int], documents: list[int], vocabulary: int) -> list[float]:
    found = []
    for token, document in zip(tokens, documents, strict=True):
        others = Counter(t for t, d in zip(tokens, documents, strict=True) if d != document)
        distinct, total = len(others), sum(others.values())
        share = (others[token] + distinct / vocabulary) / (total + distinct) if total else 1 / vocabulary
        found.append(-math.log(share))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_estimate_of_witten_and_bell_without_the_own_document(seed: int) -> None:
    chance = np.random.default_rng(seed)
    tokens, documents = chance.integers(0, 9, 60).tolist(), chance.integers(0, 5, 60).tolist()
    found = held_out_unigram_nll(tokens, documents, 12)
    assert found == pytest.approx(by_definition(tokens, documents, 12), rel=1e-12)


def test_probabilities_of_all_tokens_sum_to_one() -> None:
    vocabulary, rest = 7, [1, 1, 2, 3, 3, 3]
    total = 0.0
    for token in range(vocabulary):
        nll = held_out_unigram_nll([token, *rest], [0] + [1] * len(rest), vocabulary)
        total += math.exp(-nll[0])
    assert total == pytest.approx(1, rel=1e-12)


def test_a_document_does_not_predict_itself() -> None:
    tokens, documents = [5] * 10 + [6] * 10, [0] * 10 + [1] * 10
    assert held_out_unigram_nll(tokens, documents, 8).min() > math.log(8)


def test_a_single_document_is_predicted_uniformly() -> None:
    assert held_out_unigram_nll([1, 1, 2], ["a", "a", "a"], 10).tolist() == [math.log(10)] * 3
    assert len(held_out_unigram_nll([], [], 10)) == 0


@pytest.mark.parametrize(
    ("tokens", "documents", "says"), [([1, 2], [0], "as many"), ([10], [0], "0 to 9"), ([-1], [0], "0 to 9")]
)
def test_what_does_not_fit_is_refused(tokens: list[int], documents: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        held_out_unigram_nll(tokens, documents, 10)
