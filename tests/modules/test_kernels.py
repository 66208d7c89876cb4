"""What is said of compressed modules is what they keep and multiply."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.modules.inspection import module_formats
from harness.modules.kernels import left_out, looked_at, unpacked_notes
from harness.records import ModuleFormat
from tests.helpers.tiny_models import family

torch.set_num_threads(1)


class Packed(nn.Module):
    """A linear layer of int8 codes."""

    def __init__(self, integers: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.integers = 32, 16, integers
        codes = torch.arange(16 * 32).reshape(16, 32).remainder(127).to(torch.int8)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", torch.full((16,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        if not self.integers:
            return x @ (self.codes.float() * self.scale[:, None]).T
        step = x.abs().amax(-1, keepdim=True) / 127
        return torch._int_mm((x / step).round().to(torch.int8), self.codes.T.contiguous()) * step * self.scale


@torch.library.custom_op("tests_real_or_simulated::hidden", mutates_args=())
def hidden(x: Tensor, weight: Tensor) -> Tensor:
    """A product that operators do not tell anything of."""
    return torch.from_numpy(x.numpy() @ weight.numpy().T)


class Hidden(Packed):
    """Codes that become floats inside an operator of their own."""

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = hidden(x, self.codes.float() * self.scale[:, None])
        return product


def stated(**fields: Any) -> ModuleFormat:
    given = {"type": "Packed", "parameters": 512, "stored_bytes": 576, "bits_per_weight": 9.0, "format": "int8"}
    return ModuleFormat(**({"module": "0", "granularity": "channel", "backend": "mine"} | given | fields))


def test_packed_weights_that_are_multiplied_as_floats_are_weight_only() -> None:
    (found,) = looked_at(nn.Sequential(Packed(integers=False)), [stated()])
    assert (found.kernel, found.product) == ("real", "floats")


INPUTS = "int8 per token, dynamic"


def test_packed_weights_that_are_multiplied_as_codes_are_called_so() -> None:
    (found,) = looked_at(nn.Sequential(Packed(integers=True)), [stated(activations=INPUTS)])
    assert (found.kernel, found.product) == ("real", "codes")


def test_inputs_that_are_said_to_be_rounded_and_are_not_make_no_product_of_codes() -> None:
    for module in (Packed(integers=False), Hidden(integers=False)):
        (found,) = looked_at(nn.Sequential(module), [stated(activations=INPUTS)])
        assert (found.kernel, found.product) == ("real", "floats")


def test_four_bits_that_are_held_in_floats_are_simulated_whatever_is_said() -> None:
    before = [stated(format="int4", type="Linear")]
    after = looked_at(nn.Sequential(nn.Linear(32, 16)), before)
    assert after[0].kernel == "simulated"
    (note,) = unpacked_notes(before, after)
    assert note.level == "warn"
    assert "said to be int4, but keep more bits" in note.text


def test_codes_of_a_wider_type_are_simulated() -> None:
    assert looked_at(nn.Sequential(Packed(integers=True)), [stated(format="int4")])[0].kernel == "simulated"


def test_a_cautious_statement_stays() -> None:
    before = [stated(kernel="simulated"), stated(backend="", format="float32", granularity="none")]
    assert list(looked_at(nn.Sequential(Packed(integers=True)), before)) == before


def test_a_layer_that_cannot_be_called_alone_is_not_spoken_of() -> None:
    layer: Any = Packed(integers=True)
    layer.forward = lambda _x: [][1]
    layer.forward = lambda _x: (_ for _ in ()).throw(RuntimeError("needs the whole model"))
    (found,) = looked_at(nn.Sequential(layer), [stated(activations=INPUTS)])
    assert (found.kernel, found.product) == ("real", "")


def test_the_live_layer_is_not_called() -> None:
    layer = Packed(integers=False)
    layer.register_forward_hook(lambda *_: torch.zeros(1))
    model = nn.Sequential(layer)
    layer.codes.requires_grad_(False)
    before = layer.codes._version
    looked_at(model, [stated(activations=INPUTS)])
    assert layer.codes._version == before


@pytest.mark.parametrize("touched", ["weights", "inputs"])
def test_experts_that_no_step_took_are_named_with_their_share(touched: str) -> None:
    model = copy.deepcopy(family("mixtral"))
    formats = list(module_formats(model, {}))
    assert not list(left_out("v", formats, model)), "nothing is compressed"
    done = {"backend": "mine"} if touched == "weights" else {"activations": "int8 per token, dynamic"}
    some = [f.model_copy(update=done) if f.module.endswith("q_proj") else f for f in formats]
    (note,) = left_out("v", some, model)
    stacks = [f for f in formats if "experts" in f.module]
    share = sum(f.parameters for f in stacks) / sum(f.parameters for f in formats)
    assert f"the {touched} of 4 stacks of experts, with {share:.0%} of all parameters" in note.text
    assert note.level == "warn"
    every = [f.model_copy(update=done) if f.role == "linear" else f for f in formats]
    assert not list(left_out("v", every, model))
    dense = family("llama")
    assert not list(left_out("v", [f.model_copy(update=done) for f in module_formats(dense, {})][:3], dense))
