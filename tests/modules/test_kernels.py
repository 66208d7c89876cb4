"""What is said of compressed modules is what they keep and multiply."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.modules.inspection import module_formats
from harness.modules.kernels import inspect_kernels, note_skipped_experts, note_unpacked
from harness.records import ModuleFormat
from tests.helpers.number_formats import INT8_INPUTS, named
from tests.helpers.tiny_models import family

torch.set_num_threads(1)


class Packed(nn.Module):
    """A linear layer of int8 codes."""

    codes: Tensor
    scale: Tensor

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
    given: dict[str, Any] = {"type": "Packed", "parameters": 512, "stored_bytes": 576, "bits_per_weight": 9.0}
    given["format"] = named("int8", granularity="channel")
    return ModuleFormat(**({"module": "0", "backend": "mine"} | given | fields))


def test_packed_weights_that_are_multiplied_as_floats_are_weight_only() -> None:
    (found,) = inspect_kernels(nn.Sequential(Packed(integers=False)), [stated()])
    assert (found.kernel, found.gemm_kind) == ("real", "floats")


def test_packed_weights_that_are_multiplied_as_codes_are_called_so() -> None:
    (found,) = inspect_kernels(nn.Sequential(Packed(integers=True)), [stated(activations=INT8_INPUTS)])
    assert (found.kernel, found.gemm_kind) == ("real", "codes")


def test_inputs_that_are_said_to_be_rounded_and_are_not_make_no_product_of_codes() -> None:
    for module in (Packed(integers=False), Hidden(integers=False)):
        (found,) = inspect_kernels(nn.Sequential(module), [stated(activations=INT8_INPUTS)])
        assert (found.kernel, found.gemm_kind) == ("real", "floats")


def test_four_bits_that_are_held_in_floats_are_simulated_whatever_is_said() -> None:
    before = [stated(format=named("int4", granularity="channel"), type="Linear")]
    after = inspect_kernels(nn.Sequential(nn.Linear(32, 16)), before)
    assert after[0].kernel == "simulated"
    (note,) = note_unpacked(before, after)
    assert note.level == "warn"
    assert "declared as int4, but store more bits" in note.text


def test_codes_of_a_wider_type_are_simulated() -> None:
    assert (
        inspect_kernels(nn.Sequential(Packed(integers=True)), [stated(format=named("int4", granularity="channel"))])[
            0
        ].kernel
        == "simulated"
    )


def test_a_cautious_statement_stays() -> None:
    before = [stated(kernel="simulated"), stated(backend="", format=named("float32"))]
    assert list(inspect_kernels(nn.Sequential(Packed(integers=True)), before)) == before


def test_a_layer_that_cannot_be_called_alone_is_not_spoken_of() -> None:
    layer: Any = Packed(integers=True)
    layer.forward = lambda _x: [][1]
    layer.forward = lambda _x: (_ for _ in ()).throw(RuntimeError("needs the whole model"))
    (found,) = inspect_kernels(nn.Sequential(layer), [stated(activations=INT8_INPUTS)])
    assert (found.kernel, found.gemm_kind) == ("real", "")


def test_the_live_layer_is_not_called() -> None:
    layer = Packed(integers=False)
    layer.register_forward_hook(lambda *_: torch.zeros(1))
    model = nn.Sequential(layer)
    layer.codes.requires_grad_(False)
    before = layer.codes._version
    inspect_kernels(model, [stated(activations=INT8_INPUTS)])
    assert layer.codes._version == before


@pytest.mark.parametrize("touched", ["weights", "inputs"])
def test_experts_that_no_step_took_are_named_with_their_share(touched: str) -> None:
    model = copy.deepcopy(family("mixtral"))
    formats = list(module_formats(model, {}))
    assert not list(note_skipped_experts("v", formats, model)), "nothing is compressed"
    done = {"backend": "mine"} if touched == "weights" else {"activations": INT8_INPUTS}
    some = [f.model_copy(update=done) if f.module.endswith("q_proj") else f for f in formats]
    (note,) = note_skipped_experts("v", some, model)
    stacks = [f for f in formats if "experts" in f.module]
    share = sum(f.parameters for f in stacks) / sum(f.parameters for f in formats)
    assert f"the {touched} of 4 stacks of experts, with {share:.0%} of all parameters" in note.text
    assert note.level == "warn"
    every = [f.model_copy(update=done) if f.role == "linear" else f for f in formats]
    assert not list(note_skipped_experts("v", every, model))
    dense = family("llama")
    assert not list(
        note_skipped_experts("v", [f.model_copy(update=done) for f in module_formats(dense, {})][:3], dense)
    )
