"""The texts of token ids: as they read inside a text, with parts of characters as bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness.pocket import MODEL_DIR
from harness.running.token_texts import spell_tokens, store_token_texts
from harness.tables.store import Store


def load_pocket() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)


def token_rows(*ids: int) -> pd.DataFrame:
    return pd.DataFrame({"target": ids, "reference_top1": ids, "variant_top1": [number + 1 for number in ids]})


def test_the_texts_of_a_document_put_together_are_the_document() -> None:
    tokenizer = load_pocket()
    text = "The cat saw\n a <script>."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(spell_tokens(tokenizer, ids)) == text


def test_a_part_of_a_character_is_its_byte() -> None:
    tokenizer = load_pocket()
    ids = tokenizer("\u20ac", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    assert spell_tokens(tokenizer, ids) == ["\\xe2", "\\x82", "\\xac"]


def test_an_id_without_a_token_and_a_failing_tokenizer_have_no_text() -> None:
    tokenizer = load_pocket()
    assert spell_tokens(tokenizer, [-1, len(tokenizer)]) == ["", ""]
    tokenizer.decode = lambda *_, **__: [][1]
    assert spell_tokens(tokenizer, [5, 6]) == ["", ""]


def test_the_table_holds_every_id_once_and_is_written_once(tmp_path: Path) -> None:
    tokenizer = load_pocket()
    with Store(tmp_path, "k") as store:
        sink = store.sink("core")
        store_token_texts(sink, tokenizer)
        assert sink.read("token_texts") is None
        sink.commit("pass/0", {"tokens": token_rows(300, 293, 300)})
        for _ in range(2):
            store_token_texts(sink, tokenizer)
        found = sink.read("token_texts")
        assert found is not None
        assert found["id"].tolist() == [293, 294, 300, 301]
        assert found["text"].tolist() == spell_tokens(tokenizer, [293, 294, 300, 301])
