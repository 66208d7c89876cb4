"""Round-to-nearest on whole models."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness import plugins
from harness.backends import Backend
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError
from harness.records import ModuleFormat
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

MIDDLE = "model.layers.0.mlp.gate_proj"


def compress(model: PreTrainedModel, **fields: Any) -> dict[str, ModuleFormat]:
    done = RoundToNearest(**fields).compress(model, tiny_tokenizer(), ())
    assert done.model is model
    return {module.module: module for module in done.modules}


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """Symmetric rounding in groups of a row, written with Python loops."""
    result, largest = weight.clone(), 2 ** (bits - 1) - 1
    for row in result:
        for start in range(0, len(row), group):
            piece = row[start : start + group]
            scale = piece.abs().max() / largest
            piece.copy_((piece / scale).round() * scale)
    return result


def test_every_linear_layer_is_rounded_and_nothing_else() -> None:
    model = tiny_llama(tied=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    formats = compress(model, bits=4)
    assert len(formats) == 2 * 7
    for name, tensor in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in formats:
            assert torch.equal(tensor, rounded(before[name], 4, 32)), name
        else:
            assert torch.equal(tensor, before[name]), name
    assert "lm_head" not in formats


@pytest.mark.parametrize(
    ("fields", "granularity", "group_size", "bits"),
    [
        ({"bits": 4}, "group", 32, 4 + 16 / 32),
        ({"bits": 4, "group_size": 16, "symmetric": False}, "group", 16, 4 + 20 / 16),
        ({"bits": 8, "granularity": "channel"}, "channel", None, 8 + 16 / 64),
        ({"bits": 2, "granularity": "tensor"}, "tensor", None, 2 + 16 / (64 * 112)),
        ({"bits": 3, "group_size": 48, "full_range": True}, "group", 48, 3 + 2 * 16 / 64),
    ],
)
def test_the_format_says_what_was_done(
    fields: dict[str, Any], granularity: str, group_size: int | None, bits: float
) -> None:
    found = compress(tiny_llama(), **fields)[MIDDLE]
    assert found.format.name == f"int{fields['bits']}"
    assert (found.format.granularity, found.format.group_size) == (granularity, group_size)
    assert found.format.symmetric == fields.get("symmetric", True)
    assert found.bits_per_weight == pytest.approx(bits, rel=1e-12)
    assert found.parameters == 64 * 112
    assert found.stored_bytes == math.ceil(bits * 64 * 112 / 8)
    assert (found.kernel, found.backend, found.type) == ("simulated", "round_to_nearest", "Linear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_model_keeps_its_dtype(dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)  # type: ignore[arg-type]
    compress(model, bits=4)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    weight = model.get_submodule(MIDDLE).weight
    assert max(len(row.unique()) for row in weight.reshape(-1, 32)) <= 15


def test_conv1d_is_grouped_along_its_inputs() -> None:
    model, original = tiny_gpt2(), tiny_gpt2()
    formats = compress(model, bits=4, group_size=20)
    layer = "transformer.h.1.mlp.c_fc"
    before, after = (each.get_parameter(f"{layer}.weight") for each in (original, model))
    assert torch.equal(after, rounded(before.detach().T.contiguous(), 4, 20).T)
    assert after.is_contiguous()
    assert torch.equal(model.get_parameter(f"{layer}.bias"), original.get_parameter(f"{layer}.bias"))
    assert formats[layer].type == "Conv1D"
    codes, scales, bias = 48 * 192 * 4, 192 * 3 * 16, 192 * 32
    assert formats[layer].stored_bytes * 8 == codes + scales + bias
    assert formats[layer].parameters == 48 * 192 + 192
    ids = torch.tensor([[0, 4, 8]])
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, original(ids).logits)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_tied_head_is_rounded_without_touching_the_embedding(make: Any) -> None:
    model = make()
    embedding = model.get_input_embeddings().weight
    before = embedding.detach().clone()
    formats = compress(model, bits=4, skip=())
    assert "lm_head" in formats
    assert model.get_input_embeddings().weight is embedding
    assert torch.equal(embedding, before)
    assert torch.equal(model.lm_head.weight, rounded(before, 4, 32))
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, rounded(before, 4, 32))


def test_a_tied_head_that_is_skipped_stays_tied() -> None:
    model = tiny_llama()
    compress(model, bits=4)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings


def test_layers_that_share_a_weight_go_on_sharing_it() -> None:
    model = tiny_llama()
    first, second = (model.get_submodule(f"model.layers.{index}.mlp.gate_proj") for index in (0, 1))
    second.weight = first.weight
    compress(model, bits=4)
    assert second.weight is first.weight


def test_skip_takes_names_and_patterns() -> None:
    formats = compress(tiny_llama(), bits=4, skip=("*.self_attn.*", MIDDLE, "lm_head"))
    assert sorted(formats) == sorted(
        ["model.layers.1.mlp.gate_proj"]
        + [f"model.layers.{index}.mlp.{name}_proj" for index in (0, 1) for name in ("up", "down")]
    )


def test_lm_head_stands_for_the_output_head_under_any_name() -> None:
    model = tiny_llama(tied=False)
    model.embed_out = model.lm_head
    del model.lm_head
    model.get_output_embeddings = lambda: model.embed_out  # type: ignore[method-assign]
    assert "embed_out" not in compress(model, bits=4)
    assert "embed_out" in compress(model, bits=4, skip=())


def test_a_skip_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(BackendError, match=r"\['model.layer.0.\*'\] match no linear layer.*q_proj"):
        compress(tiny_llama(), bits=4, skip=("lm_head", "model.layer.0.*"))


def test_nothing_left_to_quantize_is_an_error() -> None:
    with pytest.raises(BackendError, match=r"15 linear layers.*none left"):
        compress(tiny_llama(), bits=4, skip=("*",))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter(f"{MIDDLE}.weight")[3, 4] = bad
    with pytest.raises(BackendError, match=rf"round_to_nearest: {MIDDLE}: .*NaN or infinity"):
        compress(model, bits=8)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 1},
        {"bits": 9},
        {"bits": 4.0},
        {"bits": 4, "granularity": "row"},
        {"bits": 4, "granularity": "channel", "group_size": 32},
        {"bits": 4, "group_size": 0},
        {"bits": 4, "symmetric": False, "full_range": True},
        {"bits": 4, "groupsize": 32},
        {},
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RoundToNearest(**fields)


def test_settings_survive_a_round_trip() -> None:
    for step in (RoundToNearest(bits=4), RoundToNearest(bits=8, granularity="channel", skip=())):
        assert RoundToNearest.model_validate_json(json.dumps(step.settings())) == step


def test_it_is_found_by_its_name() -> None:
    assert plugins.load(Backend, "round_to_nearest") is RoundToNearest


# --- a real model, against figures measured with plain transformers code ------------------------------------

PUBLISHED = {8: (0.000397, 3.5745), 4: (0.154386, 4.2103)}
"""bits: mean KL in nats a token and perplexity of the first hundred stories, as printed."""


@pytest.mark.slow
def test_published_divergence_and_perplexity_of_stories260k(shared_data: Path) -> None:
    folder = shared_data / "models/stories260K-hf"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    lines = (shared_data / "corpora/tinystories_valid_A_297.jsonl").read_text().splitlines()[:100]
    stories = [torch.tensor([tokenizer(json.loads(line)["text"]).input_ids[:512]]) for line in lines]
    assert all(story[0, 0] == tokenizer.bos_token_id for story in stories)
    variants = {bits: copy.deepcopy(model) for bits in PUBLISHED}
    for bits, variant in variants.items():
        RoundToNearest(bits=bits, granularity="channel").compress(variant, tokenizer, ())
    tokens, kl, nll = 0, dict.fromkeys(PUBLISHED, 0.0), dict.fromkeys(PUBLISHED, 0.0)
    with torch.inference_mode():
        for story in stories:
            reference = functional.log_softmax(model(story).logits[0, :-1].double(), dim=-1)
            tokens += reference.shape[0]
            for bits, variant in variants.items():
                found = functional.log_softmax(variant(story).logits[0, :-1].double(), dim=-1)
                kl[bits] += (reference.exp() * (reference - found)).sum().item()
                nll[bits] -= found.gather(1, story[0, 1:, None]).sum().item()
    assert tokens == 33_908
    for bits, (published_kl, published_perplexity) in PUBLISHED.items():
        # The figures are printed with six and four decimals: half a unit of the last is all they say.
        assert kl[bits] / tokens == pytest.approx(published_kl, rel=1e-4, abs=5e-7)
        assert math.exp(nll[bits] / tokens) == pytest.approx(published_perplexity, rel=1e-4)
