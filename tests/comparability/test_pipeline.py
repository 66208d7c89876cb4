"""Parts of tokenizer.json: each is judged by the texts that it alone changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.folders import TOKENIZER, Pair, edit

LOWER = {"type": "Lowercase"}
ACCENTS = {"type": "Replace", "pattern": {"String": "é"}, "content": "e"}
SPACED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("key", "value", "severity"),
    [
        ("normalizer", LOWER, "at_once"),
        ("normalizer", ACCENTS, "beyond_inputs"),
        ("pre_tokenizer", SPACED, "at_once"),
        ("post_processor", None, "at_once"),
        ("decoder", None, "at_once"),
        (
            "decoder",
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "informative",
        ),
    ],
)
def test_a_changed_part_is_found_by_what_it_does(tmp_path: Path, key: str, value: Any, severity: str) -> None:
    pair = Pair(tmp_path)
    pair.edit(TOKENIZER, **{key: value})
    (found,) = pair.find(key)
    assert found.severity == severity
    assert bool(found.example) == (severity != "informative")
    others = {each.part for each in pair.compare().differences} - {key, "common_text", "rare_text"}
    assert not others


def test_the_example_of_a_rare_effect_shows_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(TOKENIZER, normalizer=ACCENTS)
    (found,) = pair.find("normalizer")
    assert "café" in found.example


def test_other_merges_are_a_difference_of_the_vocabulary(tmp_path: Path) -> None:
    pair = Pair(tmp_path)

    def drop_merges(content: dict[str, Any]) -> None:
        content["model"]["merges"] = content["model"]["merges"][:100]

    pair.edit(TOKENIZER, drop_merges)
    (found,) = pair.find("vocabulary")
    assert (found.severity, found.reference) == ("at_once", "1536 tokens")


def test_parts_of_a_folder_without_tokenizer_json_are_omitted_by_name(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    (pair.variant / TOKENIZER).unlink()
    (pair.variant / "vocab.json").write_text("{}", encoding="utf-8")
    edit(pair.reference / TOKENIZER, normalizer=LOWER)
    with pytest.raises(Exception, match="its tokenizer cannot be loaded"):
        pair.compare()
