"""The texts of token ids: as they read inside a text, with parts of characters as bytes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from harness.pocket import MODEL_DIR
from harness.running.token_texts import WithTokenTexts, spell_tokens
from harness.tables.store import Store


@cache
def pocket() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)


class Sentences:
    """A tokenizer in the manner of SentencePiece, some of whose tokens cannot be decoded."""

    tokens = ("<s>", "▁cat", "<0xE2>", "<0x82>", "panic", "error", "▁\ufffd")

    def __len__(self) -> int:
        return len(self.tokens)

    def convert_ids_to_tokens(self, number: int) -> str:
        return self.tokens[number]

    def decode(self, ids: list[int], **_: bool) -> str:
        words = [self.tokens[number] for number in ids]
        if "panic" in words:
            raise SystemExit(3)
        if "error" in words:
            raise ValueError("no such token")
        return "".join("\ufffd" if word.startswith("<0x") else word.replace("▁", " ") for word in words).lstrip(" ")


def token_rows(*ids: int) -> pd.DataFrame:
    return pd.DataFrame({"target": ids, "reference_top1": ids, "variant_top1": [number + 1 for number in ids]})


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_the_texts_of_a_document_put_together_are_the_document(text: str) -> None:
    tokenizer = pocket()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    spelled = spell_tokens(tokenizer, ids)
    content = b"".join(bytes.fromhex(part) if part else shown.encode() for shown, part in spelled)
    assert content.decode() == text


def test_a_part_of_a_character_is_its_byte() -> None:
    ids = pocket()("\u20ac", add_special_tokens=False)["input_ids"]
    assert spell_tokens(pocket(), ids) == [("\\xe2", "e2"), ("\\x82", "82"), ("\\xac", "ac")]


def test_special_tokens_blanks_and_bytes_of_sentencepiece() -> None:
    tokenizer: Any = Sentences()
    assert spell_tokens(tokenizer, [0, 1]) == [("<s>", ""), (" cat", "")]
    assert spell_tokens(tokenizer, [2, 3]) == [("\\xe2", "e2"), ("\\x82", "82")]
    assert spell_tokens(tokenizer, [6]) == [("▁\ufffd", "")]


def test_what_cannot_be_decoded_has_no_text_and_costs_the_others_nothing() -> None:
    tokenizer: Any = Sentences()
    assert spell_tokens(tokenizer, [-1, 4, 1, 5, 7]) == [("", ""), ("", ""), (" cat", ""), ("", ""), ("", "")]


def test_every_unit_with_tokens_has_the_text_of_each_id_once(tmp_path: Path) -> None:
    with Store(tmp_path, "k") as store:
        sink = WithTokenTexts(store.sink("core"), pocket())
        sink.commit("pass/setup", {"documents": token_rows()})
        assert sink.read("token_texts") is None
        for unit, ids in (("0", (300, 293, 300)), ("1", (8, 301))):
            sink.commit(f"pass/{unit}", {"tokens": token_rows(*ids)})
        assert sink.done("pass/1")
        first, second = sink.read_parts("token_texts")
        assert (first["id"].tolist()[:4], second["id"].tolist()[:2]) == ([293, 294, 300, 301], [8, 9])
        found = sink.read("token_texts")
        assert found is not None
        assert [*zip(found["text"], found["bytes"], strict=True)] == spell_tokens(pocket(), found["id"].tolist())
