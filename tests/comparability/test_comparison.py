"""Whole comparisons: false alarms, damaged files, and the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig

from harness.comparability import Side, Sides, assume_same, compare_sides, load_parts, read_side
from harness.errors import ModelError
from harness.pocket import MODEL_DIR
from harness.records import Comparison, Difference, Omission
from tests.helpers.folders import CHATML, SETTINGS, Pair, compare, make_folder


def test_a_folder_equals_itself(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    assert pair.compare("a text").differences == ()
    assert pair.compare().comparable == "yes"


def test_a_copy_saved_again_by_the_library_is_comparable(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(SETTINGS, chat_template=CHATML)
    again = tmp_path / "again"
    AutoTokenizer.from_pretrained(pair.variant).save_pretrained(again)
    LlamaConfig.from_pretrained(pair.variant).save_pretrained(again)
    GenerationConfig.from_pretrained(pair.variant).save_pretrained(again)
    found = compare(pair.variant, again, ("a text",))
    assert found.comparable == "yes", found.differences


def test_a_tokenizer_without_files_of_its_own_is_compared_by_what_it_does(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    slow = AutoTokenizer.from_pretrained(pair.variant)
    side = Side("variant", pair.variant, None, slow)
    found = compare_sides(Sides(read_side(pair.reference, "reference"), side, ("a text",)))
    assert found.comparable == "partly"
    assert not found.differences
    lost = {each.part for each in found.omissions}
    assert {"normalizer", "pre_tokenizer"} <= lost
    assert not lost & {"decoder", "common_text", "rare_text", "texts"}


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    (pair.variant / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"var/tokenizer\.json: not readable as JSON"):
        pair.compare()


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        compare(tmp_path, MODEL_DIR)
    with pytest.raises(ModelError, match="no such folder"):
        compare(tmp_path / "nowhere", MODEL_DIR)


def test_the_verdict_follows_from_the_differences() -> None:
    given = {"part": "p", "field": "f", "reference": "1", "variant": "2", "meaning": "m"}
    severe, beyond, told = (
        Difference.model_validate(given | {"severity": s}) for s in ("at_once", "beyond_inputs", "informative")
    )
    lost = (Omission(part="p", reason="r"),)
    assert Comparison.of("folders", False, (), (told, beyond, severe)).comparable == "no"
    assert Comparison.of("folders", False, (), (told, beyond)).comparable == "partly"
    assert Comparison.of("folders", False, (), (told,), lost).comparable == "partly"
    assert Comparison.of("folders", False, (), (told,)).comparable == "yes"
    with pytest.raises(ValueError, match="make it 'no'"):
        Comparison(comparable="yes", basis="folders", same_files=False, parts=(), differences=(severe,))


def test_a_variant_made_here_has_nothing_to_compare() -> None:
    found = assume_same("reference")
    assert (found.comparable, found.same_files, found.differences) == ("yes", True, ())
    assert found.parts == tuple(part.kind for part in load_parts())


def test_causes_are_told_before_their_effects(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit("tokenizer.json", post_processor=None)
    told = [each.part for each in pair.compare("a text").differences]
    assert told == ["post_processor", "common_text", "rare_text", "texts"]


def test_older_files_with_special_tokens_of_their_own_are_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "older")
    (folder / "special_tokens_map.json").write_text(
        '{"eos_token": {"content": "</s>"}, "cls_token": "<s>"}', encoding="utf-8"
    )
    assert read_side(folder, "older").special_tokens["cls_token"].startswith("<s")
