"""Bytes and formats of modules whose weights are not plain floats, as quantizing libraries leave them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models.identity import weights_sha256
from harness.modules.inspection import Seen, measure_storage, module_formats, named_tensors, own_tensors
from harness.records import ModuleFormat, NumberFormat


class Packed(nn.Module):
    """A linear layer of 4-bit codes, two a byte, with 16-bit scales for groups of 8."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("codes", torch.arange(inputs * outputs // 2, dtype=torch.uint8).view(outputs, -1))
        self.register_buffer("scales", torch.ones(outputs, inputs // 8, dtype=torch.float16))
        self.register_buffer("scratch", torch.ones(1000), persistent=False)
        self.bias = nn.Parameter(torch.zeros(outputs))


class Opaque(nn.Module):
    """A linear layer that keeps its weight in something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 4, 4


class QuantState(SimpleNamespace):
    """What bitsandbytes hangs on a 4-bit parameter."""


def described(module: str, **fields: Any) -> dict[str, ModuleFormat]:
    stated: dict[str, Any] = {"type": "Packed", "parameters": 5, "stored_bytes": 7, "bits_per_weight": 4.0}
    stated["format"] = NumberFormat(type="other", element="mine")
    return {module: ModuleFormat(module=module, **(stated | fields))}


def test_packed_codes_count_as_stored_and_weights_by_their_declared_sizes() -> None:
    (found,) = module_formats(nn.Sequential(Packed(16, 6)), {}, "some-method")
    assert found.stored_bytes == 16 * 6 // 2 + 6 * 2 * 2 + 6 * 4
    assert found.parameters == 16 * 6 + 6
    assert found.bits_per_weight == 4 + 16 / 8
    assert (found.format.name, found.kernel, found.backend) == ("uint8", "real", "some-method")


def test_scales_hung_on_a_parameter_are_counted_and_hashed() -> None:
    layer: Any = nn.Linear(16, 4, bias=False)
    layer.weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    nested = QuantState(absmax=torch.ones(1))
    layer.weight.quant_state = QuantState(absmax=torch.ones(2), code=torch.ones(16), state2=nested, name="nf4")
    names = [name for name, _ in named_tensors(layer)]
    assert names == [
        "weight",
        "weight.quant_state.absmax",
        "weight.quant_state.code",
        "weight.quant_state.state2.absmax",
    ]
    (found,) = module_formats(nn.Sequential(layer), {}, "bitsandbytes")
    assert found.stored_bytes == 32 + 4 * (2 + 16 + 1)
    before = weights_sha256(layer)
    nested.absmax[0] = 2
    assert weights_sha256(layer) != before


def test_scales_kept_in_a_dictionary_are_counted() -> None:
    layer: Any = Packed(16, 6)
    layer.meta = {"zero": torch.ones(3), "shape": (6, 16), "axis": 1}
    assert "meta.zero" in dict(own_tensors(layer))


def test_a_tensor_subclass_is_taken_apart() -> None:
    class Pair(Tensor):
        @staticmethod
        def __new__(cls, codes: Tensor, scale: Tensor) -> Pair:
            return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

        def __init__(self, codes: Tensor, scale: Tensor) -> None:
            self.codes, self.scale = codes, scale

        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["codes", "scale"], None

        @classmethod
        def __torch_dispatch__(  # type: ignore[override]
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return args[0] if func is torch.ops.aten.detach.default else NotImplemented

    layer = nn.Linear(8, 4, bias=False)
    layer.weight = nn.Parameter(Pair(torch.ones(4, 8, dtype=torch.int8), torch.ones(4)), requires_grad=False)
    assert [name for name, _ in own_tensors(layer)] == ["weight.codes", "weight.scale"]
    (found,) = module_formats(nn.Sequential(layer), {}, "torchao")
    assert (found.stored_bytes, found.parameters, found.format.name) == (32 + 16, 32, "int8")
    assert found.bits_per_weight == 8 + 32 / 8


def test_what_a_backend_states_wins_and_speaks_for_everything_inside() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.LayerNorm(4))
    formats = module_formats(model, described("0"))
    assert [(found.module, found.format.name) for found in formats] == [("0", "mine"), ("1", "float32")]
    assert formats[0].stored_bytes == 7


def test_a_described_module_without_tensors_keeps_what_was_stated() -> None:
    (found,) = module_formats(nn.Sequential(Opaque()), described("0"))
    assert (found.parameters, found.stored_bytes) == (5, 7)


def test_a_weight_that_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ModelError, match="0: Opaque stores its weight where its bytes cannot be counted"):
        module_formats(nn.Sequential(Opaque()), {})


def test_shared_and_expanded_tensors_are_counted_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.LayerNorm(4))
    model[1].weight = model[0].weight
    model[2].register_buffer("table", torch.ones(1).expand(1000))
    first, second, norm = module_formats(model, {})
    assert (first.stored_bytes, second.stored_bytes) == (64, 0)
    assert second.type == "Linear (shared)"
    assert norm.stored_bytes == 4 * 4 * 2 + 4


def test_weights_that_torch_packed_are_counted_by_what_the_kernel_keeps() -> None:
    layer: Any = nn.Linear(16, 4)
    layer.qconfig = torch.ao.quantization.per_channel_dynamic_qconfig
    packed = torch.ao.nn.quantized.dynamic.Linear.from_float(layer)
    found = dict(named_tensors(packed))
    assert {name.rpartition(".")[2] for name in found} == {"codes", "scale", "zero_point", "bias"}
    counted = measure_storage(packed, {})
    assert (counted.weight, counted.bias) == (16 * 4 + 4 * 4 + 4 * 4, 4 * 4)
    assert (counted.codes, counted.floats) == (16 * 4, 4)
    layer.weight.data.neg_()
    assert weights_sha256(torch.ao.nn.quantized.dynamic.Linear.from_float(layer)) != weights_sha256(packed)
    formats = module_formats(
        nn.Sequential(packed, torch.ao.nn.quantized.dynamic.Linear.from_float(layer)),
        {
            **described("0", stored_bytes=112),
            **described("1", stored_bytes=112),
        },
    )
    assert [each.stored_bytes for each in formats] == [112, 112], "new tensors at an old place count for themselves"


def test_tensors_hung_on_a_linear_layer_count_once() -> None:
    class MatmulLtState(SimpleNamespace):
        """Where bitsandbytes keeps codes and scales after the first pass, with leftovers of that pass."""

    layer: Any = Packed(16, 6)
    layer.bias = None
    layer.bias_of_hqq = torch.zeros(6)
    layer.state = MatmulLtState(CB=layer.codes, SCB=torch.ones(6), idx=torch.arange(3))
    names = [name for name, _ in named_tensors(layer)]
    assert names == ["codes", "scales", "bias_of_hqq", "state.CB", "state.SCB"]
    assert measure_storage(layer, {}).weight == 16 * 6 // 2 + 6 * 2 * 2 + 2 * 6 * 4
    seen: Seen = {}
    measure_storage(layer, seen)
    assert measure_storage(layer, seen).weight == 0


def test_plain_tensors_of_other_modules_are_not_weights() -> None:
    norm = nn.LayerNorm(4)
    norm.cache = torch.zeros(1000)
    assert [name for name, _ in own_tensors(norm)] == ["weight", "bias"]
