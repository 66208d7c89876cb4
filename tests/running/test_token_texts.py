"""The texts of token ids: as they read inside a text, with parts of characters as bytes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from harness.pocket import MODEL_DIR
from harness.running.token_texts import spell_tokens, store_token_texts
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


def test_the_table_holds_every_id_once_and_grows_with_the_documents(tmp_path: Path) -> None:
    with Store(tmp_path, "k") as store:
        sink = store.sink("core")
        store_token_texts(sink, pocket())
        assert sink.read("token_texts") is None
        for unit, ids, wanted in (("0", (300, 293, 300), [293, 294, 300, 301]), ("1", (8, 301), [8, 9, 293, 294])):
            sink.commit(f"pass/{unit}", {"tokens": token_rows(*ids)})
            for _ in range(2):
                store_token_texts(sink, pocket())
            found = sink.read("token_texts")
            assert found is not None
            assert found["id"].tolist()[:4] == wanted
            assert [*zip(found["text"], found["bytes"], strict=True)] == spell_tokens(pocket(), found["id"].tolist())
        assert len([unit for unit in store.units("core") if unit.startswith("token_texts")]) == 2
