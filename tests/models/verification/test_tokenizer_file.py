"""A loaded tokenizer is compared with its own tokenizer.json, which is the truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from harness.errors import ModelError
from harness.models.verification.tokenizer_file import SAMPLES, verify_texts, verify_tokenizer
from harness.pocket import MODEL_DIR
from tests.helpers.tiny_models import family, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, tmp_path / name)
    return tmp_path


def edit(path: Path, drop: tuple[str, ...] = (), **fields: Any) -> None:
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in drop}))


def load(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def test_a_tokenizer_as_in_its_file_is_accepted_without_a_note(folder: Path) -> None:
    assert verify_tokenizer("m", load(folder)) == ()
    assert verify_texts(load(folder), ["any text", *SAMPLES]) == ""


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "GemmaTokenizer", "T5TokenizerFast"])
def test_a_class_that_makes_another_pipeline_is_refused(folder: Path, name: str) -> None:
    edit(folder / "tokenizer_config.json", drop=("backend",), tokenizer_class=name)
    try:
        loaded = load(folder)
    except Exception:  # noqa: BLE001 - transformers refuses some combinations itself, in many ways
        pytest.skip(f"transformers refuses {name}")
    with pytest.raises(
        ModelError, match=rf"tokenizer\.json: .*{name.removesuffix('Fast')}.*'In 1987.*expected \[42, 79"
    ):
        verify_tokenizer("m", loaded)


@pytest.mark.parametrize(
    ("named", "todo"),
    [
        ("LlamaTokenizer", r"set tokenizer_class in tokenizer_config\.json to PreTrainedTokenizerFast"),
        ("PreTrainedTokenizerFast", r"transformers takes this class for this model_type, whatever is named"),
    ],
)
def test_what_to_do_fits_what_transformers_looks_at(tmp_path: Path, named: str, todo: str) -> None:
    save(family("qwen2"), tmp_path)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class=named)
    with pytest.raises(ModelError, match=rf"Qwen2Tokenizer.*{todo}"):
        verify_tokenizer("m", load(tmp_path))


def test_a_normalizer_that_the_class_drops_is_found_by_the_samples(folder: Path) -> None:
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded: Any = load(folder)
    file.normalizer = normalizers.Lowercase()
    file.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        verify_tokenizer("m", loaded)


def test_a_document_is_compared_where_no_sample_differs(folder: Path) -> None:
    loaded = load(folder)
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.normalizer = normalizers.Replace("zebra", "horse")
    file.save(str(folder / "tokenizer.json"))
    assert verify_tokenizer("m", loaded) == ()
    with pytest.raises(ModelError, match="'a zebra'"):
        verify_texts(loaded, ["a horse", "a zebra"])


def test_an_added_token_that_loading_loses_is_refused(folder: Path) -> None:
    loaded = load(folder)
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.add_special_tokens(["<|tool|>"])
    file.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"one <\|tool\|> two"):
        verify_tokenizer("m", loaded)


def test_tokens_that_the_settings_add_are_a_note(folder: Path) -> None:
    token = {"content": "hello", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"1536": token | {"special": False}})
    (note,) = verify_tokenizer("m", load(folder))
    assert "added_tokens_decoder" in note.text
    assert note.level == "info"


def byte_level(folder: Path, settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """A tokenizer of GPT-2's class, which takes add_prefix_space from its settings."""
    vocabulary = {symbol: number for number, symbol in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(folder / "tokenizer.json"))
    LlamaConfig(vocab_size=300).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load(folder)


def test_a_setting_that_transformers_puts_into_the_file_is_a_note(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    loaded = byte_level(tmp_path, settings)
    (note,) = [note for note in verify_tokenizer("m", loaded) if "add_prefix_space" in note.text]
    assert "as asked: add_prefix_space" in note.text
    assert verify_texts(loaded, ["word"]) == "add_prefix_space"


@pytest.mark.parametrize(("settings", "level"), [({"add_bos_token": False}, "info"), ({}, "warn")])
def test_a_template_that_loading_changes_is_named(folder: Path, settings: dict[str, Any], level: str) -> None:
    loaded: Any = load(folder)
    edit(folder / "tokenizer_config.json", **settings)
    loaded.backend_tokenizer.post_processor = processors.ByteLevel()
    (note,) = verify_tokenizer("m", loaded)
    assert "is wor d after loading and <s> wor d in tokenizer.json" in note.text
    assert note.level == level
    assert ("add_bos_token: false" in note.text) == bool(settings)


def test_a_tokenizer_without_a_file_is_not_compared(folder: Path) -> None:
    loaded = load(folder)
    (folder / "tokenizer.json").unlink()
    assert verify_tokenizer("m", loaded) == ()
    assert verify_texts(loaded, ["a"]) == ""


@pytest.mark.parametrize("kind", ["Llama", "Gemma", "GPT2", "Qwen2", "T5", "Bert", "XLMRoberta", "Roberta", "Cohere"])
def test_a_tokenizer_that_transformers_saved_is_accepted(tmp_path: Path, kind: str) -> None:
    import transformers

    made = getattr(transformers, f"{kind}Tokenizer")()
    made.save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded).__name__.startswith(kind)
    assert [note.text for note in verify_tokenizer("m", loaded) if note.level == "warn"] == []
