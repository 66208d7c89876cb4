"""The same bytes under two tokenizers: places to cut, windows, and texts that a tokenizer does not give back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harness.data.aligned_windows import Reading, TokenizedSide, find_cuts, readings, windows

SENTENCES = ["the cat sat on the mat and the dog", "a dog and a cat", "naïve café – déjà vu", "one two three"]


def trained(size: int, texts: Sequence[str] = SENTENCES, **parts: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE; ``parts`` replaces its normalizer, say."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")  # noqa: S106


FINE, COARSE = trained(262), trained(330)


def by_hand(text: str, offsets: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """(characters, tokens) before every place at which all earlier tokens have ended and no later one has begun."""
    found = {(0, 0), (len(text), len(offsets))}
    for count in range(1, len(offsets)):
        before = max(end for _, end in offsets[:count])
        if all(begin >= before for begin, _ in offsets[count:]) and 0 < before < len(text):
            found.add((before, count))
    return found


@given(text=st.text(alphabet="the caté–😀\n", min_size=1, max_size=40))
def test_cuts_are_where_no_token_straddles(text: str) -> None:
    for tokenizer in (FINE, COARSE):
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = found["offset_mapping"]
        places, counts = find_cuts(text, len(offsets), offsets)
        assert set(zip(places.tolist(), counts.tolist(), strict=True)) == by_hand(text, offsets)
        for place, count in zip(places, counts, strict=True):
            assert tokenizer.decode(found["input_ids"][:count]) == text[:place]


def test_within_a_character_that_two_tokens_share_there_is_no_cut() -> None:
    """As where one token ends with the first byte of é, and the next begins with its second."""
    places, counts = find_cuts("xéyz!", 3, [(0, 2), (1, 4), (4, 5)])
    assert (places.tolist(), counts.tolist()) == ([0, 4, 5], [0, 2, 3])


def test_beside_a_token_without_characters_there_is_no_cut() -> None:
    places, counts = find_cuts("ab cd", 4, [(0, 2), (2, 2), (3, 5), (5, 5)])
    assert (places.tolist(), counts.tolist()) == ([0, 5], [0, 4])


def test_without_offsets_a_text_is_taken_whole() -> None:
    for offsets in (None, [(0, 0), (0, 0)]):
        places, counts = find_cuts("ab", 2, offsets)
        assert (places.tolist(), counts.tolist()) == ([0, 2], [0, 2])
    assert [part.tolist() for part in find_cuts("", 0, [])] == [[0], [0]]


def read(text: str, tokenizer: PreTrainedTokenizerFast) -> Reading:
    (found,) = readings([text], tokenizer)
    return found


def sides(text: str, most: tuple[int, int], bos: tuple[bool, bool] = (True, True)) -> tuple[Any, Any]:
    tokenizers = (FINE, COARSE)
    readers = tuple(TokenizedSide(t, (0,) if b else (), m) for t, b, m in zip(tokenizers, bos, most, strict=True))
    return tuple(read(text, tokenizer) for tokenizer in tokenizers), readers


@given(
    text=st.text(alphabet="the cat dog é–", min_size=1, max_size=60),
    most=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    bos=st.tuples(st.booleans(), st.booleans()),
    whole=st.booleans(),
)
def test_both_sides_score_exactly_the_same_bytes(
    text: str, most: tuple[int, int], bos: tuple[bool, bool], whole: bool
) -> None:
    both, readers = sides(text, most, bos)
    found = windows(text, both, readers, whole)
    assert whole or len(found) <= 1
    for window in found:
        assert window.size == len(text[window.begin : window.end].encode()) > 0
        for tokenizer, reader, stretch in zip((FINE, COARSE), readers, window.sides, strict=True):
            assert len(stretch.ids) <= reader.most
            assert stretch.first >= 1, "the first id has nothing to be predicted from"
            assert tuple(stretch.ids[: len(reader.opening)].tolist()) == reader.opening
            assert tokenizer.decode(stretch.ids[stretch.first :].tolist()) == text[window.begin : window.end]
    assert all(one.end <= two.begin for one, two in pairwise(found))
    if all(bos) and found:
        assert found[0].begin == 0
        assert [one.end for one in found[:-1]] == [two.begin for two in found[1:]]
    if all(bos) and min(most) > 1 + max(len(side.ids) for side in both):
        assert [(window.begin, window.end) for window in found] == [(0, len(text))]


def test_what_a_side_without_bos_cannot_score_is_left_out_on_both() -> None:
    text = "the cat sat on the mat"
    both, readers = sides(text, (99, 99), (True, False))
    (window,) = windows(text, both, readers, False)
    first = min(set(both[0].places[1:].tolist()) & set(both[1].places[1:].tolist()))
    assert window.begin == first > 0
    assert window.sides[0].first == 1 + int(np.flatnonzero(both[0].places == first)[0])


def test_a_text_is_cut_where_both_end_a_token_and_the_rest_makes_further_windows() -> None:
    text = "the cat sat on the mat and the dog"
    both, readers = sides(text, (12, 6))
    (first,) = windows(text, both, readers, False)
    assert 0 < first.end < len(text)
    every = windows(text, both, readers, True)
    assert (every[0].begin, every[0].end) == (first.begin, first.end)
    assert sum(window.size for window in every) == len(text)


def test_where_nothing_fits_there_is_no_window() -> None:
    both, readers = sides("naïve café", (1, 99))
    assert windows("naïve café", both, readers, True) == []
    assert windows("", *sides("", (9, 9)), True) == []


@pytest.mark.parametrize(
    ("part", "text", "lossy"),
    [
        ({}, "Déjà VU  twice", False),
        ({"normalizer": normalizers.Lowercase()}, "Déjà", True),
        ({"normalizer": normalizers.Lowercase()}, "déjà", False),
        ({"normalizer": normalizers.StripAccents()}, "cafe\u0301", True),
        ({"normalizer": normalizers.NFC()}, "cafe\u0301", True),
        ({"normalizer": normalizers.Replace("  ", " ")}, "one  two", True),
        ({"normalizer": normalizers.Prepend(" ")}, "one two", False),
    ],
)
def test_texts_that_do_not_come_back_are_seen(part: dict[str, Any], text: str, lossy: bool) -> None:
    assert read(text, trained(280, **part)).lossy is lossy


def test_unknown_words_do_not_come_back() -> None:
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "known": 1}, unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")  # noqa: S106
    assert not read("known known", tokenizer).lossy
    assert read("known unknown", tokenizer).lossy


def test_a_tokenizer_without_offsets_still_reads() -> None:
    class Slow:
        is_fast = False

        def __call__(self, texts: list[str], **settings: Any) -> dict[str, Any]:
            assert not settings["return_offsets_mapping"]
            return {"input_ids": [[ord(character) for character in text] for text in texts]}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(map(chr, ids))

    (found,) = readings(["abc"], Slow())  # type: ignore[arg-type]
    assert (found.places.tolist(), found.counts.tolist(), found.lossy) == ([0, 3], [0, 3], False)
