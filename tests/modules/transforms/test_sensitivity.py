"""The Fisher information against gradients that torch accumulates in the model's own parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.modules.linears import linears, weight_of
from harness.modules.transforms.sensitivity import fisher_diagonal
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama

torch.set_num_threads(1)
DOCUMENTS = [torch.tensor([0, 5, 9, 2, 40, 7]), torch.tensor([0, 3]), torch.tensor([0, 90, 90, 12, 8, 77, 31, 6, 1])]


def by_hand(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """One document after the other through a copy whose head has a weight of its own."""
    model = copy.deepcopy(model)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.requires_grad_(True)
    squares: list[list[Tensor]] = []
    for ids in DOCUMENTS:
        model.zero_grad()
        loss = model(input_ids=ids[None], labels=ids[None]).loss  # A mean over the predicted tokens.
        (loss * (len(ids) - 1)).backward()
        gradients = [model.get_parameter(f"{name}.weight").grad for name in names]
        squares.append([gradient.double() ** 2 for gradient in gradients if gradient is not None])
        assert len(squares[-1]) == len(names)
    return {name: torch.stack([square[i] for square in squares]).mean(0) for i, name in enumerate(names)}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_it_is_the_mean_of_squared_document_gradients(make: type) -> None:
    model = make().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(linears(model))
    with torch.no_grad():
        found = fisher_diagonal(model, modules, DOCUMENTS)
    wanted = by_hand(model, list(modules))
    assert found.keys() == modules.keys()
    for name, fisher in found.items():
        stored = wanted[name].T if make is tiny_gpt2 and name != "lm_head" else wanted[name]
        assert fisher.shape == weight_of(modules[name]).shape
        assert fisher.dtype == torch.float32
        assert torch.allclose(fisher.double(), stored, rtol=1e-3, atol=1e-5 * stored.max().item()), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_only_what_is_asked_for_is_measured_and_the_order_does_not_matter() -> None:
    model = tiny_llama().requires_grad_(False)
    name = "model.layers.1.mlp.up_proj"
    modules = {name: dict(linears(model))[name]}
    found = fisher_diagonal(model, modules, DOCUMENTS)
    assert list(found) == [name]
    again = fisher_diagonal(model, modules, DOCUMENTS[::-1])
    assert torch.allclose(found[name], again[name], rtol=1e-6)


def test_modules_that_share_a_weight_share_its_information() -> None:
    model = tiny_llama().requires_grad_(False)
    names = [f"model.layers.{index}.mlp.gate_proj" for index in (0, 1)]
    first, second = (dict(linears(model))[name] for name in names)
    second.weight = first.weight
    found = fisher_diagonal(model, dict(zip(names, (first, second), strict=True)), DOCUMENTS)
    alone = fisher_diagonal(model, {names[0]: first}, DOCUMENTS)[names[0]]
    assert found[names[0]] is found[names[1]]
    assert torch.allclose(found[names[0]].double(), by_hand(model, names)[names[0]], rtol=1e-3, atol=1e-9)
    assert not torch.allclose(found[names[0]], alone, rtol=1e-2)


def test_half_precision_models_are_measured_in_float32() -> None:
    model = tiny_llama().requires_grad_(False)
    name = "model.layers.0.self_attn.q_proj"
    exact = fisher_diagonal(model, {name: dict(linears(model))[name]}, DOCUMENTS)[name]
    half = model.to(torch.bfloat16)  # type: ignore[arg-type]
    found = fisher_diagonal(half, {name: dict(linears(half))[name]}, DOCUMENTS)[name]
    assert found.dtype == torch.float32
    assert found.sum() == pytest.approx(exact.sum().item(), rel=0.05)


def test_no_documents_are_refused() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="no documents"):
        fisher_diagonal(model, dict(linears(model)), [])
