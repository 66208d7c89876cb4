"""Dense-and-sparse quantization of whole models."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import plugins
from harness.backends import Backend, Compressed
from harness.backends.dense_and_sparse import BitsOverride, DenseAndSparse
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError
from harness.modules.linears import linears, weight_of
from harness.modules.transforms.sensitivity import fisher_diagonal
from harness.numerics.decomposition import decompose
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
DOCUMENTS = [torch.tensor([0, 5, 9, 2, 40, 7]), torch.tensor([0, 90, 90, 12, 8, 77, 31, 6, 1])]
MIDDLE = "model.layers.0.mlp.gate_proj"


def compress(model: Any, **fields: Any) -> Compressed:
    return DenseAndSparse(**fields).compress(model.requires_grad_(False), tiny_tokenizer(), DOCUMENTS)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_every_layer_is_decomposed_by_its_own_sensitivity(make: Any) -> None:
    model, original = make(), make().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = compress(model, bits=3, outliers=0.01, sensitive=0.002)
    chosen = {name: module for name, module in linears(original) if name != "lm_head"}
    fisher = fisher_diagonal(original, chosen, DOCUMENTS)
    assert [module.module for module in done.modules] == list(chosen)
    assert not done.notes
    for name, module in chosen.items():
        wanted = decompose(weight_of(module), fisher[name], 3, 0.01, 0.002).values
        assert torch.equal(weight_of(model.get_submodule(name)), wanted), name
        assert model.get_submodule(name).weight.is_contiguous()
    touched = {f"{name}.weight" for name in chosen}
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items() if name not in touched)


def test_the_format_says_what_was_done() -> None:
    done = compress(tiny_llama(), bits=4, overrides=({"modules": (MIDDLE,), "bits": 2},))
    found = {module.module: module for module in done.modules}
    weights, sparse = 64 * 112, round(0.004 * 64 * 112) + round(0.0005 * 64 * 112)
    middle, other = found[MIDDLE], found["model.layers.1.mlp.gate_proj"]
    assert (middle.format.name, other.format.name) == ("codebook2+sparse", "codebook4+sparse")
    stored = weights * 2 + 112 * 4 * 16 + sparse * 32 + 113 * 32
    assert middle.bits_per_weight == pytest.approx(stored / weights, rel=1e-12)
    assert middle.stored_bytes == math.ceil(stored / 8)
    assert (middle.format.granularity, middle.format.group_size, middle.format.symmetric) == ("channel", None, None)
    assert (middle.parameters, middle.kernel, middle.backend) == (weights, "simulated", "dense_and_sparse")
    plain = compress(tiny_llama(), bits=4, outliers=0.0, sensitive=0.0).modules[0]
    assert plain.format.name == "codebook4"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sparse_weights_keep_every_bit_in_the_models_dtype(dtype: torch.dtype) -> None:
    model, original = tiny_llama().to(dtype), tiny_llama().to(dtype)  # type: ignore[arg-type]
    compress(model, bits=2, outliers=0.05)
    after, before = (each.get_parameter(f"{MIDDLE}.weight") for each in (model, original))
    assert after.dtype == dtype
    largest = before.abs().flatten().topk(round(0.05 * before.numel()) - 20).indices
    assert torch.equal(after.flatten()[largest], before.flatten()[largest])


def test_a_tied_head_is_replaced_without_touching_the_embedding() -> None:
    model = tiny_llama()
    before = model.model.embed_tokens.weight.clone()
    assert "lm_head" in {module.module for module in compress(model, bits=2, skip=()).modules}
    model.tie_weights()
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert not torch.equal(model.lm_head.weight, before)


def test_layers_that_share_a_weight_go_on_sharing_it() -> None:
    model = tiny_llama()
    first, second = (model.get_submodule(f"model.layers.{index}.mlp.gate_proj") for index in (0, 1))
    second.weight = first.weight
    done = compress(model, bits=3)
    assert second.weight is first.weight
    assert len(done.modules) == 14


def test_layers_without_a_gradient_are_named() -> None:
    model = tiny_llama()
    model.spare = torch.nn.Linear(64, 64)
    (note,) = compress(model, bits=3).notes
    assert note.level == "warn"
    assert "1 modules have no gradient" in note.text
    assert "spare" in note.text


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = float("nan")
    with pytest.raises(BackendError, match=r"dense_and_sparse: model\.layers\..*(NaN or inf)"):
        compress(model, bits=4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bits": 1},
        {"bits": 9},
        {"bits": 4, "outliers": 0.6},
        {"bits": 4, "sensitive": -0.1},
        {"bits": 4, "granularity": "group"},
        {"bits": 4, "symmetric": True},
        {"bits": 4, "overrides": ({"modules": ("a",), "bits": 4, "group_size": 32},)},
        {"bits": 4, "overrides": ({"modules": (), "bits": 4},)},
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DenseAndSparse(**fields)


def test_override_patterns_must_match() -> None:
    with pytest.raises(BackendError, match=r"dense_and_sparse: \['nowhere'\] match no linear layer"):
        compress(tiny_llama(), bits=4, overrides=({"modules": ("nowhere",), "bits": 2},))


def test_it_is_found_by_its_name_and_its_settings_survive() -> None:
    assert plugins.load(Backend, "dense_and_sparse") is DenseAndSparse
    step = DenseAndSparse(bits=3, overrides=(BitsOverride(modules=("a",), bits=4),))
    assert DenseAndSparse.model_validate_json(json.dumps(step.settings())) == step


@pytest.mark.slow
def test_a_real_model_loses_far_less_than_by_rounding(shared_data: Path) -> None:
    folder = shared_data / "models/stories260K-hf"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    model.requires_grad_(False)
    lines = (shared_data / "corpora/tinystories_valid_A_297.jsonl").read_text().splitlines()
    stories = [torch.tensor(tokenizer(json.loads(line)["text"]).input_ids[:256]) for line in lines[100:140]]
    calibration, held_out = stories[:24], stories[24:]

    def divergence(step: Any) -> float:
        variant = copy.deepcopy(model)
        step.compress(variant, tokenizer, calibration)
        total = tokens = 0.0
        with torch.inference_mode():
            for ids in held_out:
                p, q = (each(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1) for each in (model, variant))
                total += (p.exp() * (p - q)).sum().item()
                tokens += len(p)
        return total / tokens

    for bits in (3, 4):
        rounded = divergence(RoundToNearest(bits=bits, granularity="channel", symmetric=False))
        codebooks = divergence(DenseAndSparse(bits=bits, outliers=0.0, sensitive=0.0))
        both = divergence(DenseAndSparse(bits=bits))
        assert both < codebooks < 0.5 * rounded
