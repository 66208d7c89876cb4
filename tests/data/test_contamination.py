"""What counts as seen before, against plain loops over texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.data.contamination import WINDOW, DocumentIndex

PIECES = ["<s>", " ", ".", "A", "a", "B", "b", *(f"w{number}" for number in range(40))]


def by_piece() -> PreTrainedTokenizerFast:
    """One id for each piece."""
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(PIECES)}, unk_token=PIECES[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=PIECES[0])


TOKENIZER = by_piece()


def ids(*pieces: str) -> np.ndarray:
    return np.array([PIECES.index(piece) for piece in pieces], dtype=np.int64)


def run(start: int, count: int) -> list[str]:
    return [f"w{start + index}" for index in range(count)]


def test_thirteen_tokens_in_a_row_are_seen_and_twelve_are_not() -> None:
    seen = DocumentIndex(TOKENIZER, [ids("<s>", *run(0, 20))])
    assert seen.count_shared(ids("<s>", "a", *run(3, 13), "b")) == (1, 3)
    assert seen.count_shared(ids("<s>", "a", *run(3, 12), "b")) == (0, 2)
    assert seen.count_shared(ids(*run(2, 15))) == (3, 3)


def test_case_blanks_punctuation_and_bos_make_no_difference() -> None:
    text = ["a", "b", *run(0, 12)]
    seen = DocumentIndex(TOKENIZER, [ids("<s>", *text)])
    assert seen.count_shared(ids("A", " ", "B", ".", *run(0, 12))) == (2, 2)
    assert seen.count_shared(ids("b", "a", *run(1, 11), "w30")) == (0, 2)


def test_short_documents_are_compared_whole() -> None:
    seen = DocumentIndex(TOKENIZER, [ids("<s>", "a", "w1"), ids(*run(0, 20))])
    assert seen.count_shared(ids("<s>", "A", ".", "w1")) == (1, 1)
    assert seen.count_shared(ids("<s>", "A", "w1", "w2")) == (0, 1)
    assert seen.count_shared(ids(*run(0, 5))) == (0, 1), "a part of a longer document is no whole one"
    assert seen.count_shared(ids("<s>", ".")) == (0, 1), "a document without words is like no other"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.integers(WINDOW, 60))
def test_windows_are_those_of_a_plain_search(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    known = [rng.integers(7, 10, 50) for _ in range(3)]
    text = rng.integers(7, 10, length)
    text[:WINDOW] = known[1][5 : 5 + WINDOW]
    rows = [tuple(k[at : at + WINDOW].tolist()) for k in known for at in range(len(k) - WINDOW + 1)]
    windows = [tuple(text[at : at + WINDOW].tolist()) for at in range(length - WINDOW + 1)]
    expected = sum(window in rows for window in windows)
    assert expected >= 1
    assert DocumentIndex(TOKENIZER, known).count_shared(text.astype(np.int64)) == (expected, len(windows))


def test_pieces_of_characters_are_told_apart_by_their_ids() -> None:
    class Bytes:
        all_special_ids = (0,)

        def batch_decode(self, rows: list[list[int]]) -> list[str]:
            return ["\ufffd" for _ in rows]

    seen = DocumentIndex(Bytes(), [np.arange(1, 20)])  # type: ignore[arg-type]
    assert seen.count_shared(np.arange(1, 20)) == (7, 7)
    assert seen.count_shared(np.arange(20, 40)) == (0, 8)


@pytest.mark.parametrize("special", [0, 1])
def test_special_tokens_are_no_words(special: int) -> None:
    found = DocumentIndex(TOKENIZER, []).content_ids(ids(*["<s>"] * special, "a", "."))
    assert found.tolist() == ids("a", ".").tolist()
