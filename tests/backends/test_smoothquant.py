"""SmoothQuant on whole models."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness import plugins
from harness.backends import Backend
from harness.backends.round_to_nearest import RoundToNearest
from harness.backends.smoothquant import SmoothQuant, smoothing_scale
from harness.data.documents import read_documents
from harness.errors import BackendError
from harness.modules.linears import linears
from harness.pocket import MODEL_DIR
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

DOCUMENTS = [torch.randint(0, 96, (length,), generator=torch.Generator().manual_seed(length)) for length in (20, 7, 33)]
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def outliers(model: PreTrainedModel) -> PreTrainedModel:
    """Gains that differ from channel to channel, so that there is something to smooth."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "norm" in name + "ln_" * ("ln_" in name):
            parameter.data *= torch.exp(2 * torch.randn(len(parameter), generator=generator))
    return model


def compress(model: PreTrainedModel, **fields: Any) -> tuple[str, ...]:
    done = SmoothQuant(**fields).compress(model, tiny_tokenizer(), DOCUMENTS)
    assert done.model is model
    assert done.modules == ()
    return tuple(note.text for note in done.notes)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return torch.cat([model(ids[None]).logits[0] for ids in DOCUMENTS])


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_the_scales_are_those_of_the_formula(alpha: float) -> None:
    model = outliers(tiny_llama())
    before = copy.deepcopy(model)
    compress(model, alpha=alpha)
    seen: dict[str, list[float]] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            for token in arguments[0][0]:
                largest = seen.setdefault(name, [0.0] * len(token))
                seen[name] = [max(old, abs(new)) for old, new in zip(largest, token.tolist(), strict=True)]

        return hook

    for norm, readers in READERS.items():
        name = f"model.layers.1.{norm}"
        weights = [before.get_parameter(f"model.layers.1.{reader}.weight") for reader in readers]
        handle = before.get_submodule(f"model.layers.1.{readers[0]}").register_forward_pre_hook(watch(name))
        logits(before)
        handle.remove()
        for j in range(64):
            weight = max(matrix[:, j].abs().max().item() for matrix in weights)
            scale = seen[name][j] ** alpha / weight ** (1 - alpha)
            gain, old = model.get_parameter(f"{name}.weight"), before.get_parameter(f"{name}.weight")
            assert gain[j].item() == pytest.approx(old[j].item() / scale, rel=1e-5)
            for reader, matrix in zip(readers, weights, strict=True):
                column = model.get_parameter(f"model.layers.1.{reader}.weight")[:, j]
                assert torch.allclose(column, matrix[:, j] * scale, rtol=1e-5)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("into", ["norms", "norms_and_linears"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_model_computes_what_it_did(make: Any, into: str, dtype: torch.dtype) -> None:
    model = outliers(make()).to(dtype)  # type: ignore[arg-type]
    before, weights = logits(model), {name: p.clone() for name, p in model.named_parameters()}
    compress(model, into=into)
    # Two layers, whose sums of at most 192 products may round otherwise in each product and in each addition.
    tolerance = 2 * 192 * torch.finfo(dtype).eps
    assert (logits(model) - before).abs().max() <= tolerance * before.abs().max()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, weights[name])}
    assert any("down_proj" in name or "attn.c_proj" in name for name in changed) == (into == "norms_and_linears")
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_both_sides_are_equally_difficult_at_one_half() -> None:
    """With α = ½, max|X_j| equals max|W_j| in every channel afterwards: what the method is for."""
    model = outliers(tiny_llama())
    compress(model)
    again = copy.deepcopy(model)
    compress(again)
    for (name, once), twice in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.allclose(once, twice, rtol=1e-4), name


def test_dead_channels_and_empty_columns_stay() -> None:
    # In float64, so that no kernel's rounding of sums comes near what a wrongly scaled channel would change.
    model = outliers(tiny_llama()).double()
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.input_layernorm.weight[3] = 0
        for name in ("gate_proj", "up_proj"):
            layer.mlp.get_submodule(name).weight[:, 7] = 0
    before, gain = copy.deepcopy(model), layer.post_attention_layernorm.weight[7].item()
    compress(model)
    assert torch.equal(layer.self_attn.q_proj.weight[:, 3], before.model.layers[0].self_attn.q_proj.weight[:, 3])
    assert layer.post_attention_layernorm.weight[7].item() == gain
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    assert (logits(model) - logits(before)).abs().max() <= 1e-12 * logits(before).abs().max()


def test_scales_of_single_channels() -> None:
    inputs, weights = torch.tensor([4.0, 0.0, 9.0, 1e-30]), torch.tensor([0.25, 1.0, 0.0, 1.0])
    assert smoothing_scale(inputs, weights, 0.5).tolist() == pytest.approx([4.0, 1.0, 1.0, 1e-5])
    assert smoothing_scale(inputs[:1], weights[:1], 0.75).item() == pytest.approx(4**0.75 / 0.25**0.25)


def test_it_says_what_it_did() -> None:
    assert compress(tiny_llama(), alpha=0.7) == (
        "smoothquant: alpha 0.7, scales of 10 linear layers folded into 4 norms",
    )
    assert compress(tiny_llama(), into="norms_and_linears") == (
        "smoothquant: alpha 0.5, scales of 14 linear layers folded into 4 norms and 4 linear layers",
    )
    shared = tiny_llama()
    shared.model.layers[1].input_layernorm = shared.model.layers[0].input_layernorm
    assert "2 norms were left unchanged (first: model.layers.0.input_layernorm)" in compress(shared)[1]


def test_a_model_without_anything_to_fold_is_refused() -> None:
    # In float64: without norms the layers move their block by less than 1e-4 of its output, which float32 rounds away.
    model = tiny_llama().double()
    for layer in model.model.layers:
        layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
    with pytest.raises(BackendError, match="no norm into which a scale can be folded"):
        compress(model)
    assert "norms and 4 linear layers" in compress(model, into="norms_and_linears")[0]


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(BackendError, match=r"smoothquant: model.layers.1.mlp.up_proj: .*NaN or infinity"):
        compress(model)


@pytest.mark.parametrize("fields", [{"alpha": -0.1}, {"alpha": 1.1}, {"into": "linears"}, {"bits": 8}])
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SmoothQuant(**fields)


def test_it_is_found_by_its_name() -> None:
    assert plugins.load(Backend, "smoothquant") is SmoothQuant


# --- the embedded model, whose norms have outlier channels --------------------------------------------------


@contextmanager
def inputs_in_int8(model: PreTrainedModel) -> Iterator[None]:
    """Every input of a linear layer but the head's rounded to INT8 with one scale for the whole tensor."""

    def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        scale = arguments[0].abs().max() / 127
        return ((arguments[0] / scale).round() * scale,)

    handles = [module.register_forward_pre_hook(hook) for name, module in linears(model) if name != "lm_head"]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def divergence(reference: PreTrainedModel, model: PreTrainedModel, documents: Sequence[Tensor]) -> float:
    total, tokens = 0.0, 0
    for ids in documents:
        wanted = functional.log_softmax(reference(ids[None]).logits[0].double(), dim=-1)
        found = functional.log_softmax(model(ids[None]).logits[0].double(), dim=-1)
        total += (wanted.exp() * (wanted - found)).sum().item()
        tokens += len(ids)
    return total / tokens


def test_it_recovers_what_8_bit_activations_lose_on_outlier_channels() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()

    def documents(data: str, count: int) -> list[Tensor]:
        texts = [document.text for document in read_documents(data, count)]
        return [torch.tensor([tokenizer.bos_token_id, *tokenizer(text).input_ids][:128]) for text in texts]

    held_out, lost = documents("pocket-heldout", 8), {}
    for smooth in (False, True):
        variant = copy.deepcopy(model)
        if smooth:
            SmoothQuant().compress(variant, tokenizer, documents("pocket-calibration", 8))
        RoundToNearest(bits=8, granularity="channel").compress(variant, tokenizer, ())
        with inputs_in_int8(variant):
            lost[smooth] = divergence(model, variant, held_out)
    assert lost[True] < 0.1 * lost[False]
