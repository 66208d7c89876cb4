"""Stop tokens are compared as generation resolves them."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.folders import SETTINGS, Pair, edit

GENERATION = "generation_config.json"


def test_a_lost_stop_token_is_named_with_its_text(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / GENERATION, eos_token_id=[1, 15])
    (found,) = pair.find("stop_tokens")
    assert (found.field, found.severity) == ("eos_token_id", "at_once")
    assert found.meaning == "the variant no longer stops at 15 ('.'): answers end elsewhere"


def test_an_added_one_too(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(GENERATION, eos_token_id=[1, 15])
    (found,) = pair.find("stop_tokens")
    assert found.meaning.startswith("the variant also stops at 15")


def test_without_the_file_config_json_decides(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    (pair.variant / GENERATION).unlink()
    assert not pair.find("stop_tokens")
    edit(pair.reference / GENERATION, eos_token_id=[1, 15])
    (found,) = pair.find("stop_tokens")
    assert found.variant == "[1] (config.json)"


def test_the_order_of_ids_and_a_list_of_one_change_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(GENERATION, eos_token_id=[1])
    assert not pair.find("stop_tokens")


def test_the_end_token_of_the_tokenizer_is_one(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(SETTINGS, lambda held: held.update({"eos_token": "<s>"}))
    (found,) = pair.find("stop_tokens")
    assert (found.field, found.reference, found.variant) == ("eos_token", "</s>", "<s>")
