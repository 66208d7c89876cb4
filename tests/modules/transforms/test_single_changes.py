"""Changes to one weight at a time, against whole passes through changed copies of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.modules.linears import linears, replace_weight, weight_of
from harness.modules.transforms.single_changes import group_by_weight, measure_divergences, measure_output_errors
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama

torch.set_num_threads(1)
DOCUMENTS = [torch.tensor([0, 5, 9, 2, 40, 7]), torch.tensor([0, 3]), torch.tensor([0, 90, 90, 12, 8, 77, 31, 6, 1])]
CHANGES: list[Callable[[Tensor], Tensor]] = [lambda weight: weight * 1.5, torch.round, lambda weight: weight]


def by_hand(model: PreTrainedModel, names: tuple[str, ...], change: Any) -> float:
    other = copy.deepcopy(model)
    before, after = dict(linears(model)), dict(linears(other))
    for name in names:
        replace_weight(after[name], change(weight_of(before[name])))
    total, tokens = 0.0, 0
    with torch.no_grad():
        for ids in DOCUMENTS:
            p, q = (each(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1) for each in (model, other))
            total += (p.exp() * (p - q)).sum().item()
            tokens += len(ids) - 1
    return total / tokens


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_divergences_are_those_of_changed_copies(make: Any) -> None:
    model = make().requires_grad_(False)
    before = dict(model.state_dict(keep_vars=True))
    every = group_by_weight(list(linears(model)))
    found = measure_divergences(model, every, CHANGES, DOCUMENTS)
    assert found.shape == (len(every), 3)
    for unit, row in zip(every, found.tolist(), strict=True):
        wanted = [by_hand(model, unit.names, change) for change in CHANGES]
        assert row == pytest.approx(wanted, rel=1e-6, abs=1e-12), unit.names
        assert row[2] == 0.0
    assert all(tensor is before[name] for name, tensor in model.state_dict(keep_vars=True).items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_blocks_before_the_changed_one_are_not_computed_again() -> None:
    model = tiny_llama().requires_grad_(False)
    calls = [0, 0]

    def count(index: int, *_: Any) -> None:
        calls[index] += 1

    for index in (0, 1):
        model.model.layers[index].mlp.register_forward_hook(partial(count, index))
    last = group_by_weight([(name, module) for name, module in linears(model) if ".layers.1." in name])
    measure_divergences(model, last, CHANGES[:2], DOCUMENTS[:1])
    assert calls == [1, 1 + 1 + 7 * 2]  # The reference, the test that a pass may start there, and every change.
    head = group_by_weight([(name, module) for name, module in linears(model) if name == "lm_head"])
    measure_divergences(model, head, CHANGES, DOCUMENTS[:1])
    assert calls == [2, 17]


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_hands_on_more_than_hidden_states_is_run_from_the_start(fails: bool) -> None:
    model = tiny_llama().requires_grad_(False)
    handed: list[Tensor] = []

    def keep(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
        handed.append(output)

    def add(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0] + (handed.pop() if fails else handed[-1]), *arguments[1:])

    model.model.layers[0].mlp.register_forward_hook(keep)
    model.model.layers[1].register_forward_pre_hook(add)
    every = group_by_weight(list(linears(model)))
    found = measure_divergences(model, every, CHANGES[:1], DOCUMENTS)
    plain = []
    for unit in every:
        weight = unit.modules[0].weight
        reference = [model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1) for ids in DOCUMENTS]
        replace_weight(unit.modules[0], weight_of(unit.modules[0]) * 1.5)
        total = 0.0
        for ids, p in zip(DOCUMENTS, reference, strict=True):
            q = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
            total += (p.exp() * (p - q)).sum().item()
        plain.append(total / 14)
        unit.modules[0].weight = weight
    assert found[:, 0].tolist() == pytest.approx(plain, rel=1e-6)


def test_layers_that_share_a_weight_change_together() -> None:
    model = tiny_llama().requires_grad_(False)
    names = tuple(f"model.layers.{index}.mlp.gate_proj" for index in (0, 1))
    first, second = (model.get_submodule(name) for name in names)
    second.weight = first.weight
    every = group_by_weight(list(linears(model)))
    shared = next(index for index, unit in enumerate(every) if len(unit.names) == 2)
    assert every[shared].names == names
    found = measure_divergences(model, every, CHANGES[:1], DOCUMENTS)[shared, 0]
    assert found.item() == pytest.approx(by_hand(model, names, CHANGES[0]), rel=1e-6)
    assert second.weight is first.weight


def test_a_change_that_breaks_the_model_costs_infinitely_much() -> None:
    model = tiny_llama().requires_grad_(False)
    every = group_by_weight([(name, module) for name, module in linears(model) if ".mlp." in name])
    for measure in (measure_divergences, measure_output_errors):
        found = measure(model, every, [lambda weight: weight * float("nan")], DOCUMENTS)
        assert torch.isinf(found).all()


def test_a_change_that_fails_leaves_the_model_as_it_was() -> None:
    model = tiny_llama().requires_grad_(False)
    every, before = group_by_weight(list(linears(model))), dict(model.named_parameters())

    def refuse(_weight: Tensor) -> Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        measure_divergences(model, every, [refuse], DOCUMENTS)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_a_layer_that_no_document_reaches_costs_nothing() -> None:
    model = tiny_llama().requires_grad_(False)
    model.spare = nn.Linear(4, 4)
    every = group_by_weight([("spare", model.spare)])
    assert measure_divergences(model, every, CHANGES, DOCUMENTS).tolist() == [[0.0] * 3]
    assert measure_output_errors(model, every, CHANGES, DOCUMENTS).tolist() == [[0.0] * 3]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_output_errors_are_relative_squares(make: Any) -> None:
    model = make().requires_grad_(False)
    every = group_by_weight(list(linears(model)))
    found = measure_output_errors(model, every, CHANGES, DOCUMENTS)
    seen: dict[str, list[Tensor]] = {}
    for name, module in linears(model):
        seen[name] = []
        module.register_forward_pre_hook(lambda _module, given, name=name: seen[name].append(given[0][0].double()))
    for ids in DOCUMENTS:
        model(input_ids=ids[None])
    for unit, row in zip(every, found.tolist(), strict=True):
        weight, inputs = weight_of(unit.modules[0]), torch.cat(seen[unit.names[0]])
        size = (inputs @ weight.double().T).square().sum()
        wanted = [((inputs @ (change(weight) - weight).double().T).square().sum() / size).item() for change in CHANGES]
        assert row == pytest.approx(wanted, rel=1e-4), unit.names
