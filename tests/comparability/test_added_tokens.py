"""Added tokens: what a text that contains them becomes, and whether answers show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.folders import CHATML, SETTINGS, TOKENIZER, Pair, edit


def token(content: str, number: int, **more: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": content, **flags, **more}


def test_an_added_token_matters_in_texts_that_contain_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(TOKENIZER, lambda held: held["added_tokens"].append(token("[PAD]", 1536, special=True)))
    (found,) = pair.find("added_tokens")
    assert (found.field, found.reference, found.variant) == ("[PAD]", "none", "id 1536")
    assert found.severity == "beyond_inputs"


def test_a_marker_of_the_chat_that_is_lost_matters_at_once(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / TOKENIZER, lambda held: held["added_tokens"].append(token("<|im_end|>", 1536)))
    for folder in (pair.reference, pair.variant):
        edit(folder / SETTINGS, chat_template=CHATML)
    (found,) = pair.find("added_tokens")
    assert (found.severity, found.variant) == ("at_once", "none")


def test_a_special_token_that_is_none_any_more_is_shown_in_answers(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    for folder, special in ((pair.reference, True), (pair.variant, False)):
        entry = token("<|im_end|>", 1536, special=special)
        edit(folder / TOKENIZER, lambda held, entry=entry: held["added_tokens"].append(entry))  # type: ignore[misc]
    (found,) = pair.find("added_tokens")
    assert (found.field, found.severity) == ("<|im_end|>", "at_once")
    assert (found.reference, found.variant) == ('{"special": true}', '{"special": false}')


def test_a_token_with_a_role_stays_special_in_transformers(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(TOKENIZER, lambda held: held["added_tokens"][1].update(special=False))
    (found,) = pair.find("added_tokens")
    assert (found.field, found.severity) == ("</s>", "beyond_inputs")
    assert "programs that follow tokenizer.json alone" in found.meaning


def test_the_order_of_added_tokens_changes_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(TOKENIZER, lambda held: held["added_tokens"].reverse())
    assert not pair.find("added_tokens")
