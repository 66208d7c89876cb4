"""What a text does not run is told by calls and by the operators that read a weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.lockstep.decoder import Decoder
from harness.lockstep.idle import Watch
from harness.lockstep.recording import Idle
from harness.models.language_model import TransformersModel
from tests.helpers.tiny_models import EXPERTS, FAMILIES, family

IDS = torch.tensor([[3, 7, 3, 11]])


def idle_of(model: Any) -> Idle:
    watch = Watch(model)
    with watch.watching(), torch.no_grad():
        Decoder("x", TransformersModel(model)).prepare(IDS)
    return watch.idle()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "listed_experts"])
def test_every_module_of_a_language_model_runs(name: str) -> None:
    assert idle_of(family(name)).modules == ()


@pytest.mark.parametrize(("name", "tables"), [("llama", ("model.embed_tokens",)), ("llama_tied", ())])
def test_a_tied_table_is_read_as_a_whole(name: str, tables: tuple[str, ...]) -> None:
    assert idle_of(family(name)).tables == tables


def test_experts_that_are_modules_are_idle_where_no_token_of_the_text_goes() -> None:
    model: Any = family("listed_experts")
    seen: set[str] = set()
    for name, module in model.named_modules():
        if ".experts." in name:
            module.register_forward_pre_hook(lambda _m, _a, n=name: seen.add(n))
    idle = set(idle_of(model).modules)
    linear = {n for n, m in model.named_modules() if ".experts." in n and isinstance(m, nn.Linear)}
    assert idle == linear - seen
    assert idle


class ReadsWithoutCall(nn.Module):
    """Multiplies by the weight of a layer that it never calls, beside one that nothing reads."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.read, self.unread = inner, nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.inner(x) + 0 * functional.linear(x, self.read.weight)
        return mixed


def test_a_weight_that_is_read_without_a_call_is_not_idle() -> None:
    model: Any = copy.deepcopy(family("llama"))
    model.model.layers[0].mlp = ReadsWithoutCall(model.model.layers[0].mlp)
    assert idle_of(model).modules == ("model.layers.0.mlp.unread",)


def test_a_table_with_an_input_that_is_not_its_rows_is_taken_as_read() -> None:
    model: Any = copy.deepcopy(family("llama"))
    table = model.model.embed_tokens
    real = table.forward
    table.forward = lambda ids: real(ids + 1)
    assert idle_of(model).tables == ()


def test_stacks_of_experts_run() -> None:
    assert all(not any("experts" in name for name in idle_of(family(name)).modules) for name in EXPERTS)
