"""Keys of config.json that nothing reads are named; keys that transformers writes itself are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from harness.models.verification.config_keys import note_undeclared_keys
from tests.helpers.tiny_models import FAMILIES, family

CLASSES: dict[type, Any] = dict(AutoModelForCausalLM._model_mapping.items())


def texts(content: dict[str, Any], config: Any, made: Any) -> list[str]:
    return [note.text for note in note_undeclared_keys("m", content, config, made)]


@pytest.mark.parametrize(("key", "value"), [("logit_scale", 0.5), ("use_qk_norm", False), ("rope_freqs", [1, 2])])
def test_a_key_that_nothing_reads_is_named_with_its_value(key: str, value: Any) -> None:
    config = LlamaConfig(**{key: value})
    (text,) = texts(config.to_dict(), config, LlamaForCausalLM)
    assert f"{key}: {json.dumps(value)}" in text
    assert "LlamaConfig" in text


def test_several_are_one_note_of_level_warn() -> None:
    content = LlamaConfig().to_dict() | {"first_gain": 1, "second_gain": 2, "third_gain": None}
    (note,) = note_undeclared_keys("m", content, LlamaConfig(), LlamaForCausalLM)
    assert note.level == "warn"
    assert "first_gain: 1, second_gain: 2," in note.text
    assert "third_gain" not in note.text


def test_a_key_of_a_part_is_named_with_its_place() -> None:
    config = transformers.Gemma3Config()
    content = config.to_dict()
    content["text_config"]["logit_scale"] = 2.0
    assert "text_config.logit_scale: 2.0" in texts(content, config, transformers.Gemma3ForConditionalGeneration)[0]


def test_a_rotary_size_that_the_class_does_not_read_is_named_although_its_code_uses_the_word() -> None:
    config = transformers.MiniMaxM2Config()
    content = config.to_dict() | {"rotary_dim": 8}
    assert "rotary_dim: 8" in texts(content, config, transformers.MiniMaxM2ForCausalLM)[0]


def test_keys_of_older_versions_are_known() -> None:
    older = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float16"}
    older |= {"temperature": 0.7, "do_sample": True, "unsloth_version": "1", "_name_or_path": "x", "torchscript": False}
    content = LlamaConfig().to_dict() | older
    assert texts(content, LlamaConfig(), LlamaForCausalLM) == []


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_saved_model_has_no_unknown_key(name: str, tmp_path: Any) -> None:
    model = family(name)
    model.config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert texts(content, model.config, type(model)) == []


def test_no_class_of_transformers_writes_a_key_that_is_unknown_to_it() -> None:
    tried, named = 0, {}
    for kind, classes in CLASSES.items():
        made = classes[0] if isinstance(classes, tuple) else classes
        try:
            config: Any = kind()
        except Exception:  # noqa: BLE001, S112 - a class that needs settings refuses in its own way
            continue
        tried += 1
        content = json.loads(config.to_json_string(use_diff=False)) | json.loads(config.to_json_string())
        if found := texts(content, config, made):
            named[kind.__name__] = found
    assert named == {}
    assert tried > 100
