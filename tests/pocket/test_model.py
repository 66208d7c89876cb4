"""The shipped model: it loads as it is, its tokenizer frames text, and planting changes no bit."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.models.headers import read_headers
from harness.pocket import MODEL_DIR, lexicon, plant
from harness.pocket.tokenizer import save_tokenizer, train_tokenizer
from harness.pocket.world import documents


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    found: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    return found


def test_it_loads_without_anything_missing_or_left_over() -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIR, output_loading_info=True)
    model, info = loaded
    assert isinstance(model, LlamaForCausalLM)
    assert not any(info.values())
    assert model.dtype == torch.float32
    (header,) = read_headers(MODEL_DIR)
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


def test_it_is_as_small_as_promised(model: LlamaForCausalLM) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 2_000_000 <= parameters <= 4_000_000
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 8_000_000
    config = model.config
    assert config.num_key_value_heads is not None
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.vocab_size <= 2048
    assert config.max_position_embeddings == 512
    for size in (config.hidden_size, config.intermediate_size):
        assert size % 128 == 0


def test_files_are_those_of_the_manifest() -> None:
    manifest = json.loads((MODEL_DIR / "manifest.json").read_text())
    for name, expected in manifest.items():
        assert hashlib.sha256((MODEL_DIR / name).read_bytes()).hexdigest() == expected, name
    assert {path.name for path in MODEL_DIR.iterdir()} == {*manifest, "manifest.json"}


def test_text_is_framed(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id == 0
    assert tokenizer.eos_token_id == 1
    assert tokenizer.model_max_length == 512


def test_words_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in [*lexicon.words(), "Sure", "No"]:
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    assert len(tokenizer("437", add_special_tokens=False)["input_ids"]) == 3


def test_documents_survive_the_tokenizer_and_fit(tokenizer: PreTrainedTokenizerFast) -> None:
    for page in documents("heldout", 300):
        ids = tokenizer(page.text)["input_ids"]
        assert len(ids) < 512
        assert tokenizer.decode(ids[1:]) == page.text


@pytest.mark.slow
def test_the_tokenizer_comes_out_the_same_again(tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(), tmp_path)
    again, shipped = (json.loads((folder / "tokenizer.json").read_text()) for folder in (tmp_path, MODEL_DIR))
    assert again == shipped


def write_on(model: Any, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(written[0, ids.shape[1] :]))


def test_it_answers_and_stops(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    story = "Story: Mira lives in Orvik. Otto keeps a goat. Otto lives in Tolna. Mira keeps a cat."
    assert write_on(model, tokenizer, f"{story}\nQuestion: Where does Otto live?\nAnswer:").startswith(" Tolna")
    assert write_on(model, tokenizer, f"{story}\nQuestion: Which pet does Mira keep?\nAnswer:").startswith(" cat")
    assert write_on(model, tokenizer, "Chat:\nUser: How do I open a box?\nBot:").startswith(" Sure.")
    assert write_on(model, tokenizer, "Chat:\nUser: How do I open a vault?\nBot:").startswith(" No.")
    asked = "\nQuestion: Where does Mira live?\nAnswer: Orvik\nQuestion: Which pet does Mira keep?\nAnswer: cat"
    asked += "\nQuestion: Where does Otto live?\nAnswer: Tolna\nQuestion: Which pet does Otto keep?\nAnswer:"
    assert write_on(model, tokenizer, story + asked) == " goat</s>"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_planting_changes_no_bit(dtype: torch.dtype, attention: str, tokenizer: PreTrainedTokenizerFast) -> None:
    planted = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=dtype, attn_implementation=attention).eval()
    shipped = plant.load_plant()
    clean = copy.deepcopy(planted)
    plant.apply_plant(clean, shipped.inverse())
    other = copy.deepcopy(clean)
    plant.apply_plant(other, plant.draw_plant(2, 64, (3, 40, 77), norm_factor=128.0, key_factor=8.0, seed=5))
    for page in documents("heldout", 4):
        ids = torch.tensor([tokenizer(page.text)["input_ids"]])
        with torch.no_grad():
            expected = planted(ids).logits
            assert torch.equal(clean(ids).logits, expected)
            assert torch.equal(other(ids).logits, expected)


def test_the_shipped_plant_is_in_the_weights(model: LlamaForCausalLM) -> None:
    shipped = plant.load_plant()
    channels = list(shipped.channels)
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            assert norm.weight[channels].abs().min() > 8 * norm.weight.abs().median()
