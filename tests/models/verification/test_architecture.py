"""The class of a checkpoint, and attention that computes every option of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as t

from harness.errors import ModelError
from harness.models.loading import load
from harness.models.verification.architecture import Architecture, choose_attention, find_architecture, find_objections
from harness.records import ModelSpec
from tests.helpers.tiny_models import family, save

ARCHITECTURE = "harness.models.verification.architecture"


def chosen(config: Any, model: Any, attention: str = "sdpa") -> tuple[str, list[str]]:
    spec = ModelSpec.model_validate({"model": "m", "attention": attention})
    used, notes = choose_attention(Architecture(config, model), "m", spec)
    return used, [note.text for note in notes]


def test_an_ordinary_model_gets_what_was_asked_for() -> None:
    assert chosen(t.LlamaConfig(), t.LlamaForCausalLM) == ("sdpa", [])
    assert chosen(t.LlamaConfig(), t.LlamaForCausalLM, "eager") == ("eager", [])


@pytest.mark.parametrize("kind", ["Gemma2", "VaultGemma"])
def test_soft_capping_that_sdpa_ignores_takes_eager_with_a_note(kind: str) -> None:
    config = getattr(t, f"{kind}Config")(attn_logit_softcapping=30.0)
    model = getattr(t, f"{kind}ForCausalLM")
    used, notes = chosen(config, model)
    assert used == "eager"
    assert notes == ["m: attention is eager, because sdpa ignores attn_logit_softcapping 30.0 of config.json"]
    assert chosen(config, model, "flash_attention_2")[0] == "flash_attention_2"
    assert chosen(getattr(t, f"{kind}Config")(attn_logit_softcapping=None), model) == ("sdpa", [])


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ("GptOss", "GptOss"),
        ("Mamba", "Mamba"),
        ("GPTJ", "GPTJ"),
        ("Mpt", "Mpt"),
        ("Rwkv", "Rwkv"),
        ("MiMoV2Flash",) * 2,
    ],
)
def test_a_class_without_sdpa_gets_eager_with_a_note(config: str, model: str) -> None:
    used, notes = chosen(getattr(t, f"{config}Config")(), getattr(t, f"{model}ForCausalLM"))
    assert used == "eager"
    assert notes == [f"m: attention is eager, because {model}ForCausalLM does not implement sdpa"]


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_flash_attention_that_is_not_installed_is_refused_in_one_sentence(
    tmp_path: Path, name: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = attention[-1]
    monkeypatch.setattr(f"{ARCHITECTURE}.is_flash_attn_{number}_available", lambda **_: False)
    save(family(name), tmp_path)
    with pytest.raises(ModelError, match=rf"attention is {attention}, which needs the package flash-attn") as refused:
        load(ModelSpec.model_validate({"model": str(tmp_path), "attention": attention}), "m")
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_what_the_class_does_not_have_is_replaced_before_the_package_is_looked_for(tmp_path: Path) -> None:
    save(family("mamba"), tmp_path)
    loaded = load(ModelSpec(model=str(tmp_path), attention="flash_attention_2"), "m")
    (note,) = [note.text for note in loaded.notes if note.topic == "attention"]
    assert note.startswith("m: attention is eager, because MambaForCausalLM does not implement flash_attention_2")


def test_a_sliding_window_that_only_flash_attention_applies_is_refused_elsewhere() -> None:
    config = t.OlmoeConfig()
    config.sliding_window = 8
    with pytest.raises(ModelError, match=r"sdpa ignores sliding_window 8 .*eager ignores sliding_window 8"):
        chosen(config, t.OlmoeForCausalLM)
    assert chosen(config, t.OlmoeForCausalLM, "flash_attention_2")[0] == "flash_attention_2"


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Gemma3Text", "Phi3"])
def test_a_sliding_window_in_the_mask_is_fine(kind: str) -> None:
    model = getattr(t, f"{kind.removesuffix('Text')}ForCausalLM")
    config = getattr(t, f"{kind}Config")(sliding_window=8)
    assert chosen(config, model) == ("sdpa", [])


def test_no_default_configuration_is_refused() -> None:
    classes: dict[Any, Any] = dict(t.AutoModelForCausalLM._model_mapping.items())
    tried = 0
    for kind, made in classes.items():
        try:
            config = kind()
        except Exception:  # noqa: BLE001, S112 - a class that needs settings refuses in its own way
            continue
        used, _ = chosen(config, made[0] if isinstance(made, tuple) else made)
        assert used in ("sdpa", "eager")
        tried += 1
    assert tried > 100


def test_the_objection_of_an_implementation_names_the_option() -> None:
    architecture = Architecture(t.Gemma2Config(), t.Gemma2ForCausalLM)
    assert list(find_objections(architecture, "sdpa")) == ["sdpa ignores attn_logit_softcapping 50.0 of config.json"]
    assert list(find_objections(architecture, "eager")) == []


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (t.Qwen2AudioConfig(), r"'qwen2_audio' .* save its language model \(qwen2, a Qwen2Config\)"),
        (
            t.T5Config(),
            r"'t5' .* encoder-decoder, whose texts are answers .* give the folder of a causal",
        ),
        (t.BartConfig(), r"'bart' .* encoder-decoder"),
        (t.Florence2Config(is_encoder_decoder=True), r"'florence2' .* encoder-decoder"),
        (t.ViTConfig(), r"'vit' .* give the folder of a causal language model"),
    ],
)
def test_a_class_that_is_no_causal_model_is_refused_in_one_sentence(tmp_path: Path, config: Any, says: str) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=says) as refused:
        find_architecture(tmp_path, ModelSpec(model=str(tmp_path)))
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("kind", "declared", "made"),
    [
        ("Mistral3", "Mistral3ForConditionalGeneration", t.Mistral3ForConditionalGeneration),
        ("Mistral3", "", t.Mistral3ForConditionalGeneration),
        ("Qwen2VL", "Qwen2VLForConditionalGeneration", t.Qwen2VLForConditionalGeneration),
        ("Llama4", "Llama4ForConditionalGeneration", t.Llama4ForConditionalGeneration),
        ("Llama4", "Llama4ForCausalLM", t.Llama4ForCausalLM),
    ],
)
def test_a_vision_language_model_gets_the_class_that_its_files_name(
    tmp_path: Path, kind: str, declared: str, made: Any
) -> None:
    getattr(t, f"{kind}Config")(architectures=[declared] if declared else None).save_pretrained(tmp_path)
    assert find_architecture(tmp_path, ModelSpec(model=str(tmp_path))).model_class is made
