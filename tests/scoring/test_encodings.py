"""Texts that are encoded once, against a tokenizer that is asked for each of them."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from harness.scoring import encodings
from harness.scoring.encodings import Encodings

TEXTS = ["a b c", "a b", "c c c", "a b c"]


def make_tokenizer(bos: bool = True, words: str = "abc", kind: Any = PreTrainedTokenizerFast) -> Any:
    vocabulary = {"<s>": 0, "<unk>": 1} | {word: 2 + number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return kind(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>")  # noqa: S106


class Counted:
    """A tokenizer that counts the texts that it is given, call by call."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.calls: list[int] = []

    def __call__(self, texts: list[str], **settings: Any) -> Any:
        self.calls.append(len(texts))
        return self._tokenizer(texts, **settings)


def refuse() -> list[int]:
    raise AssertionError("the text was known")


@pytest.mark.parametrize("settings", [{}, {"add_special_tokens": False}])
def test_texts_are_encoded_together_and_once(settings: dict[str, Any]) -> None:
    tokenizer = make_tokenizer()
    counted = Counted(tokenizer)
    known = Encodings(counted)
    known.fill(TEXTS, settings)
    known.fill([*TEXTS, "b"], settings)
    assert counted.calls == [3, 1]
    for text in TEXTS:
        assert known.get((text, None), refuse) == tokenizer.encode(text, **settings)


def test_what_is_not_known_is_encoded_and_kept_until_it_is_forgotten() -> None:
    known = Encodings(make_tokenizer())
    assert known.get(("a", False), lambda: [2]) == [2]
    known.get(("a", False), refuse).append(9)
    assert known.get(("a", False), refuse) == [2], "the caller's list is its own"
    assert known.get(("a", None), lambda: [0, 2]) == [0, 2], "with special tokens it is another text"
    known.forget()
    assert known.get(("a", False), lambda: [7]) == [7]


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "KEPT_TOKENS", 5)
    monkeypatch.setattr(encodings, "TEXTS", 2)
    counted = Counted(make_tokenizer())
    known = Encodings(counted)
    known.fill(["a b c", "a b", "c c", "b"], {})
    assert counted.calls == [2], "the first two texts have seven tokens"
    assert known.get(("b", None), lambda: [0, 3]) == [0, 3]
    assert known.get(("b", None), lambda: [1]) == [1], "it was not kept"
    known.forget()
    known.fill(["b"], {})
    assert known.get(("b", None), refuse) == [0, 3]


class OwnTokenizer(PreTrainedTokenizerFast):
    """Of a checkpoint: its code may do anything."""


def test_only_equal_tokenizers_of_transformers_share_their_encodings() -> None:
    one = Encodings(make_tokenizer())
    assert one.is_same_as(Encodings(make_tokenizer()))
    assert not one.is_same_as(Encodings(make_tokenizer(bos=False)))
    assert not one.is_same_as(Encodings(make_tokenizer(words="abd")))
    own = Encodings(make_tokenizer(kind=OwnTokenizer))
    assert not own.is_same_as(own)
