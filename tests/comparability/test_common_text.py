"""Tokens as users of each side get them, and the tokenizer that transformers makes of the files."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.folders import SETTINGS, TOKENIZER, Pair


def test_a_lost_start_token_changes_every_text(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(TOKENIZER, post_processor=None)
    compared = pair.compare("One text.", "Another.")
    (everyday,) = (each for each in compared.differences if each.part == "common_text")
    assert (everyday.severity, everyday.count) == ("at_once", 6)
    assert everyday.reference.startswith("0 ")
    assert not everyday.variant.startswith("0 ")
    (suite,) = (each for each in compared.differences if each.part == "texts")
    assert (suite.severity, suite.count, suite.example) == ("at_once", 2, "One text.")


def test_texts_that_become_the_same_tokens_are_no_difference(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(TOKENIZER, normalizer={"type": "Replace", "pattern": {"String": "é"}, "content": "e"})
    assert {each.part for each in pair.compare("plain").differences} == {"normalizer", "rare_text"}
    assert {each.part for each in pair.compare("café").differences} == {"normalizer", "rare_text", "texts"}


def test_a_class_that_rebuilds_the_pipeline_is_named(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(SETTINGS, lambda held: held.pop("backend"), tokenizer_class="LlamaTokenizerFast")
    (found,) = pair.find("loaded_tokenizer")
    assert found.reference == "as tokenizer.json says"
    assert found.variant == "otherwise than tokenizer.json says (tokenizer_class LlamaTokenizerFast)"
    assert found.severity == "at_once"


def test_a_class_that_does_not_is_not(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(SETTINGS, tokenizer_class="PreTrainedTokenizerFast")
    assert pair.compare().comparable == "yes"
