"""Lengths at which tokenizers cut, and how they fill up batches."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.folders import SETTINGS, TOKENIZER, Pair

CUT = {"max_length": 128, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}


def test_truncation_matters_from_its_length_on(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(TOKENIZER, truncation=CUT)
    (found,) = pair.find("truncation")
    assert (found.severity, found.from_position) == ("beyond_inputs", 128)


def test_the_longest_text_of_the_settings_counts_as_well(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(SETTINGS, model_max_length=10**30)
    (found,) = pair.find("truncation")
    assert (found.field, found.variant, found.from_position) == ("model_max_length", "none", 512)


def test_padding_changes_no_text_by_itself(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(SETTINGS, lambda held: held.update({"padding_side": "left", "pad_token": "<s>"}))
    assert {each.field for each in pair.find("padding")} == {"padding_side", "pad_token"}
    assert pair.compare().comparable == "yes"
