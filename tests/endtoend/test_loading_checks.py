"""Whole checks of pairs that are wrong on both sides alike, or that only a look at one side's files shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from tests.helpers.checked_pair import VOCABULARY, check_pair, copy_pocket, edit, save_with_tokenizer

MEANT = 'weak_reference: "random weights"'
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def save_pair(desk: Path, kind: str, **config: Any) -> None:
    torch.manual_seed(0)
    model = getattr(t, f"{kind}ForCausalLM")(getattr(t, f"{kind}Config")(**config))
    for side in ("ref", "var"):
        save_with_tokenizer(model, desk / side)


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "GemmaTokenizer"])
@pytest.mark.parametrize("sides", [("ref", "var"), ("var",)])
def test_a_tokenizer_that_is_not_its_file_s_is_refused(tmp_path: Path, name: str, sides: tuple[str, ...]) -> None:
    for side in ("ref", "var"):
        copy_pocket(tmp_path / side)
    for side in sides:
        edit(tmp_path / side / "tokenizer_config.json", drop=("backend",), tokenizer_class=name)
    said = check_pair(tmp_path)
    assert said.code == 2
    assert f"{sides[0]}/tokenizer.json: the loaded tokenizer is not the one of this file: the class" in said.terminal
    assert f"(named {name} in tokenizer_config.json) encodes 'In 1987 she said" in said.terminal
    assert "defect" not in said.terminal


def test_a_normalizer_that_the_class_drops_is_refused(tmp_path: Path) -> None:
    for side in ("ref", "var"):
        copy_pocket(tmp_path / side)
        edit(tmp_path / side / "tokenizer.json", normalizer={"type": "Lowercase"})
        edit(tmp_path / side / "tokenizer_config.json", drop=("backend",), tokenizer_class="LlamaTokenizer")
    said = check_pair(tmp_path)
    assert said.code == 2
    assert "tokenizer.json" in said.terminal


def test_soft_capping_is_computed_whatever_attention_is_asked_for(tmp_path: Path) -> None:
    save_pair(tmp_path, "Gemma2", **SMALL, query_pre_attn_scalar=16, attn_logit_softcapping=1.0, initializer_range=0.3)
    fused = check_pair(tmp_path, more=MEANT)
    eager = check_pair(tmp_path, reference="{model: ./ref, attention: eager}", more=MEANT)
    assert (fused.code, eager.code) == (0, 0)
    assert fused.value("perplexity.value", "reference") == eager.value("perplexity.value", "reference")
    reason = "attention is eager, because sdpa ignores attn_logit_softcapping 1.0 of config.json"
    assert fused.notes("attention") == [f"ref: {reason}", f"v: {reason}"]
    assert eager.notes("attention") == []


SHORT = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
WITHOUT_SDPA: dict[str, dict[str, Any]] = {
    "GptOss": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": None},
    "Mamba": SHORT | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "GPTJ": SHORT | {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "CodeGen": SHORT | {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "Mpt": SHORT | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "Bloom": SHORT | {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Rwkv": SHORT | {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 128},
}


@pytest.mark.parametrize("kind", sorted(WITHOUT_SDPA))
def test_a_class_without_the_asked_attention_takes_its_own(tmp_path: Path, kind: str) -> None:
    save_pair(tmp_path, kind, **WITHOUT_SDPA[kind])
    said = check_pair(tmp_path, more=MEANT)
    assert said.code == 0, said.terminal
    own = getattr(getattr(t, f"{kind}ForCausalLM"), "_supports_sdpa", False)
    reason = f"attention is eager, because {kind}ForCausalLM does not implement sdpa"
    assert said.notes("attention") == ([] if own else [f"ref: {reason}", f"v: {reason}"])


def test_a_window_that_nothing_applies_is_refused(tmp_path: Path) -> None:
    config = {key: value for key, value in SMALL.items() if key != "head_dim"}
    save_pair(tmp_path, "Olmoe", **config, num_experts=4, num_experts_per_tok=2)
    for side in ("ref", "var"):
        edit(tmp_path / side / "config.json", sliding_window=8)
    said = check_pair(tmp_path, more=MEANT)
    assert said.code == 2
    assert "eager ignores sliding_window 8 of config.json" in said.terminal


@pytest.mark.parametrize("sides", [("ref", "var"), ("var",)])
@pytest.mark.parametrize(("key", "value"), [("logit_scale", 0.5), ("use_qk_norm", True)])
def test_a_key_of_the_configuration_that_nothing_reads_is_named(
    tmp_path: Path, sides: tuple[str, ...], key: str, value: Any
) -> None:
    for side in ("ref", "var"):
        copy_pocket(tmp_path / side)
    for side in sides:
        edit(tmp_path / side / "config.json", **{key: value})
    said = check_pair(tmp_path)
    assert said.code == 0
    named = [text.partition(":")[0] for text in said.notes("configuration") if f"{key}: {json.dumps(value)}" in text]
    assert named == ["v" if side == "var" else side for side in sides]
    assert {note["level"] for note in said.run["notes"] if note["topic"] == "configuration"} == {"warn"}


def test_a_copy_saved_again_has_nothing_to_be_told(tmp_path: Path) -> None:
    copy_pocket(tmp_path / "ref")
    t.AutoModelForCausalLM.from_pretrained(tmp_path / "ref").save_pretrained(tmp_path / "var")
    t.AutoTokenizer.from_pretrained(tmp_path / "ref").save_pretrained(tmp_path / "var")
    said = check_pair(tmp_path)
    assert said.code == 0
    assert not {"attention", "configuration", "tokenizer", "weak reference"} & {n["topic"] for n in said.run["notes"]}


@pytest.mark.parametrize("special", [True, False])
def test_a_token_without_a_row_in_the_embedding_is_refused(tmp_path: Path, special: bool) -> None:
    copy_pocket(tmp_path / "ref")
    tokenizer = t.AutoTokenizer.from_pretrained(copy_pocket(tmp_path / "var"))
    tokenizer.add_tokens(["<|tool|>"], special_tokens=special)
    tokenizer.save_pretrained(tmp_path / "var")
    said = check_pair(tmp_path)
    assert said.code == 2
    assert "'<|tool|>' with the id 1536, but the embedding has rows for the ids 0 to 1535 only" in said.terminal


@pytest.mark.parametrize("sides", [("var",), ("ref", "var")])
def test_a_type_that_the_library_does_not_know_is_refused_by_name(tmp_path: Path, sides: tuple[str, ...]) -> None:
    for side in ("ref", "var"):
        copy_pocket(tmp_path / side)
    for side in sides:
        edit(tmp_path / side / "config.json", model_type="gemma9")
    said = check_pair(tmp_path)
    assert said.code == 2
    assert f"{sides[0]}: transformers cannot load it" in said.terminal
    assert "gemma9" in said.terminal


def test_more_types_of_layers_than_layers_are_refused_by_the_name_of_the_key(tmp_path: Path) -> None:
    torch.manual_seed(0)
    types = ["sliding_attention", "full_attention"]
    model = t.Gemma3ForCausalLM(t.Gemma3TextConfig(**SMALL | {"layer_types": types}))
    for side in ("ref", "var"):
        save_with_tokenizer(model, tmp_path / side)
    edit(tmp_path / "var" / "config.json", layer_types=[*types, "full_attention"])
    said = check_pair(tmp_path)
    assert said.code == 2
    assert "layer_types" in said.terminal
    assert "tokenizer cannot be loaded" not in said.terminal


def make_uniform(folder: Path) -> None:
    held = load_file(copy_pocket(folder) / "model.safetensors")
    held["model.norm.weight"] *= 0
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def mix_up_tokens(folder: Path) -> None:
    held = load_file(copy_pocket(folder) / "model.safetensors")
    held["model.embed_tokens.weight"] = held["model.embed_tokens.weight"].roll(1, 0)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def make_random(folder: Path) -> None:
    torch.manual_seed(0)
    save_with_tokenizer(t.LlamaForCausalLM(t.LlamaConfig(**SMALL)), folder)


@pytest.mark.parametrize("make", [make_random, make_uniform, mix_up_tokens])
def test_nothing_is_judged_by_a_reference_that_predicts_nothing(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "ref")
    variant = "{compress: [{backend: round_to_nearest, bits: 8, granularity: channel}], artifact: none}"
    said = check_pair(tmp_path, variant=variant)
    assert said.code == 2
    assert "the reference predicts these texts no better than chance" in said.terminal
    assert "a unigram model of the other documents" in said.terminal
    meant = check_pair(tmp_path, variant=variant, more='weak_reference: "a test of rounding"')
    assert meant.code == 0
    (note,) = meant.notes("weak reference")
    assert note.endswith("that is meant, says the variant file: a test of rounding")
    assert "a test of rounding" in (tmp_path / "runs/v/report.html").read_text() or not meant.run["asked"]["outputs"]


def test_a_reason_must_be_text(tmp_path: Path) -> None:
    copy_pocket(tmp_path / "ref")
    said = check_pair(tmp_path, variant="{model: reference}", more="weak_reference: true")
    assert said.code == 2
    assert "v.yaml:4: weak_reference: found true" in said.terminal


def drop_bos(folder: Path, token: bool) -> None:
    """Take BOS out of a copy of the embedded model: its place before texts, and the token itself."""
    copy_pocket(folder)
    edit(folder / "tokenizer.json", post_processor=None)
    if token:
        edit(folder / "tokenizer_config.json", drop=("bos_token",))
        edit(folder / "config.json", bos_token_id=None)


@pytest.mark.parametrize(
    ("token", "bos", "note"),
    [
        (True, ", bos: auto", "documents begin without BOS, as the reference's tokenizer has none (bos: auto)"),
        (True, ", bos: true", "but the reference's tokenizer has no BOS token; write bos: auto"),
        (False, ", bos: auto", "as the reference's tokenizer does not put its <s> there (bos: auto)"),
    ],
)
def test_documents_begin_as_the_tokenizer_of_the_reference_begins_texts(
    tmp_path: Path, token: bool, bos: str, note: str
) -> None:
    for side in ("ref", "var"):
        drop_bos(tmp_path / side, token)
    said = check_pair(tmp_path, documents=bos)
    assert said.code == 0, said.terminal
    (text,) = said.notes("BOS")
    assert note in text
    assert said.run["asked"]["suites"][0]["documents"]["bos"] is False


def test_with_a_tokenizer_that_puts_bos_auto_is_true(tmp_path: Path) -> None:
    for side in ("ref", "var"):
        copy_pocket(tmp_path / side)
    said, plain = (check_pair(tmp_path, documents=f", bos: {bos}") for bos in ("auto", "true"))
    assert said.notes("BOS") == [
        "suite suite: documents begin with BOS (<s>), as the reference's tokenizer puts it before texts (bos: auto)"
    ]
    assert plain.notes("BOS") == []
    assert said.run["measurements"] == plain.run["measurements"]


def test_a_shipped_suite_measures_a_family_without_bos(tmp_path: Path) -> None:
    for side in ("ref", "var"):
        drop_bos(tmp_path / side, token=True)
    said = check_pair(tmp_path, suite="smoke")
    assert said.code == 0, said.terminal
