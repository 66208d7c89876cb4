"""Parts of tokenizer.json: each is judged by the texts that it alone changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.helpers.folders import SETTINGS, TOKENIZER, Pair, edit

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


def test_removing_blanks_before_punctuation_is_a_difference_of_the_decoder(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    for folder, clean in ((pair.reference, False), (pair.variant, True)):
        edit(folder / SETTINGS, clean_up_tokenization_spaces=clean)
    (found,) = pair.find("decoder")
    assert (found.field, found.reference, found.variant) == ("clean_up_tokenization_spaces", "false", "true")
    assert found.severity in ("at_once", "beyond_inputs")
    edit(pair.variant / SETTINGS, lambda held: held.pop("clean_up_tokenization_spaces"))
    assert not pair.find("decoder")


def write_word_pieces(folder: Path) -> None:
    """A slow tokenizer of word pieces, which has a list of words and no pipeline."""
    (folder / TOKENIZER).unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,!?"]
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"##{letter}" for letter in words[5:31])]), encoding="utf-8")
    (folder / SETTINGS).write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}', encoding="utf-8")


def write_words(folder: Path) -> None:
    """A tokenizer of whole words, which reads them with blanks between."""
    unknown = "[UNK]"
    words = [unknown, "Hello", ",", "world", "!", "How", "are", "you", "today", "?"]
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / TOKENIZER))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unknown}
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")


def test_slow_tokenizers_with_the_same_files_are_compared_by_them(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    for folder in (pair.reference, pair.variant):
        write_word_pieces(folder)
    found = pair.compare("a text")
    assert (found.comparable, found.omissions, found.differences) == ("yes", (), ())


def test_slow_tokenizers_with_other_files_are_compared_by_what_they_do(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    for folder in (pair.reference, pair.variant):
        write_word_pieces(folder)
    words = (pair.variant / "vocab.txt").read_text(encoding="utf-8")
    (pair.variant / "vocab.txt").write_text(words.replace("a\nb\n", "b\na\n", 1), encoding="utf-8")
    found = pair.compare("a text")
    assert found.comparable == "no"
    assert {"common_text", "texts"} <= {each.part for each in found.differences if each.severity == "at_once"}
    assert {"normalizer", "pre_tokenizer"} <= {each.part for each in found.omissions}


def test_blanks_removed_by_a_tokenizer_of_words_change_answers_at_once(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    for folder, clean in ((pair.reference, False), (pair.variant, True)):
        write_words(folder)
        edit(folder / SETTINGS, clean_up_tokenization_spaces=clean)
    (found,) = pair.find("decoder")
    assert (found.field, found.severity) == ("clean_up_tokenization_spaces", "at_once")
    assert found.example
