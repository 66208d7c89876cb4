"""The weights that layers compute with, of this project and of libraries, and how far they are from the originals."""

from __future__ import annotations

import copy
from math import nan
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.backends.activations import Activations
from harness.backends.awq import Awq
from harness.backends.llm_int8 import LLMInt8
from harness.backends.round_to_nearest import RoundToNearest
from harness.backends.smoothquant import SmoothQuant
from harness.errors import ModelError
from harness.modules import weight_errors as errors_of_weights
from harness.modules.effective_weights import effective_weight, has_plain_weight
from harness.modules.linears import linears
from harness.modules.weight_errors import weight_errors
from harness.numerics.formats import format_of, quantize
from harness.records import NumberFormat
from harness.testing.models import random_documents, tiny_tokenizer
from tests.helpers.int8_products import may_saturate
from tests.helpers.tiny_models import family

torch.set_num_threads(1)


class KeepsTheOriginal(nn.Linear):
    """Rounds at every call and keeps the original in ``weight``, as frozen layers of llm-compressor do."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().amax(1, keepdim=True) / 7
        return nn.functional.linear(x, (self.weight / scale).round() * scale, self.bias)


class RoundsInputs(nn.Linear):
    """Rounds what it is given to 4 bits, with one scale a token."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 7
        return nn.functional.linear((x / scale).round() * scale, self.weight, self.bias)


class Router(nn.Linear):
    """Gives scores and logits, as that of Llama 4."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits.sigmoid(), logits


class Gate(nn.Linear):
    """Gives two tensors, neither of them linear."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x).sigmoid(), super().forward(x).tanh()


def linear(kind: type[nn.Linear] = nn.Linear, inputs: int = 24, outputs: int = 10) -> nn.Linear:
    torch.manual_seed(0)
    return kind(inputs, outputs).requires_grad_(False)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_of_several_outputs_the_linear_one_is_measured() -> None:
    layer = linear(Router)
    found = effective_weight(layer)
    assert error(found.weight, layer.weight) < 1e-6
    assert found.bias is not None
    assert error(found.bias, layer.bias) < 1e-6
    assert (found.held, found.caveat) == (False, "")


def test_outputs_none_of_which_is_linear_are_refused() -> None:
    with pytest.raises(ModelError, match="none of its outputs is linear in its input"):
        effective_weight(linear(Gate))


def test_a_plain_layer_is_read_exactly() -> None:
    layer = linear()
    found = effective_weight(layer)
    assert (found.held, found.total, found.caveat) == (True, 24, "")
    assert torch.equal(found.weight, layer.weight)
    assert found.bias is not None
    assert torch.equal(found.bias, layer.bias)
    conv = Conv1D(10, 24).requires_grad_(False)
    assert torch.equal(effective_weight(conv).weight, conv.weight.T)


def test_a_subclass_is_applied_and_gives_the_same() -> None:
    layer = linear(type("Other", (nn.Linear,), {}))
    found = effective_weight(layer)
    assert not found.held
    torch.testing.assert_close(found.weight, layer.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.bias, layer.bias)


def test_a_patched_forward_is_applied() -> None:
    layer: Any = linear()
    layer.forward = lambda x: nn.functional.linear(x, 2 * layer.weight, layer.bias)
    assert not has_plain_weight(layer)
    torch.testing.assert_close(effective_weight(layer).weight, 2 * layer.weight, rtol=1e-6, atol=1e-6)


def test_what_is_rounded_at_every_call_is_found_although_the_original_is_kept() -> None:
    layer = linear(KeepsTheOriginal)
    scale = layer.weight.abs().amax(1, keepdim=True) / 7
    found = effective_weight(layer)
    torch.testing.assert_close(found.weight, (layer.weight / scale).round() * scale, rtol=1e-5, atol=1e-6)
    assert found.caveat == ""
    assert error(found.weight, layer.weight) > 0.01


def test_a_layer_that_rounds_its_inputs_shows_its_weight_and_says_so() -> None:
    layer = linear(RoundsInputs)
    found = effective_weight(layer)
    torch.testing.assert_close(found.weight, layer.weight, rtol=1e-5, atol=1e-6)
    assert "rounds its inputs" in found.caveat


def test_hooks_that_round_inputs_are_left_out() -> None:
    step, documents = Activations(bits=2, granularity="tensor", dynamic=False), random_documents(2, 12, seed=1)
    model = step.compress(copy.deepcopy(family("llama")), tiny_tokenizer(), documents).model
    name = "model.layers.0.mlp.up_proj"
    layer, original = model.get_submodule(name), family("llama").get_parameter(f"{name}.weight")
    assert torch.equal(effective_weight(layer).weight, original)
    layer.__class__ = type("Other", (nn.Linear,), {})
    torch.testing.assert_close(effective_weight(layer).weight, original, rtol=1e-5, atol=1e-6)


def test_many_inputs_are_sampled_at_equal_distances() -> None:
    layer = linear(KeepsTheOriginal, inputs=50)
    found = effective_weight(layer, most=20)
    assert found.inputs.tolist() == list(range(0, 50, 3))
    whole = effective_weight(layer)
    torch.testing.assert_close(found.weight, whole.weight[:, ::3])


def test_sixteen_bits_lose_nothing_to_a_large_bias() -> None:
    layer = linear(KeepsTheOriginal).to(torch.bfloat16)
    layer.bias.fill_(300)
    found = effective_weight(layer, torch.bfloat16)
    scale = layer.weight.abs().amax(1, keepdim=True) / 7
    torch.testing.assert_close(found.weight, ((layer.weight / scale).round() * scale).float())
    assert found.bias is not None
    assert found.bias.tolist() == [300.0] * 10


@pytest.mark.parametrize("forward", [lambda _x: 1 / 0, lambda x: x.new_full((len(x), 10), torch.nan)])
def test_what_cannot_be_applied_is_refused(forward: Any) -> None:
    layer: Any = linear()
    layer.forward = forward
    with pytest.raises(ModelError, match=r"Linear (cannot be called on its own: ZeroDivisionError|returns NaN)"):
        effective_weight(layer)


def test_the_live_layer_is_not_called() -> None:
    layer: Any = linear(KeepsTheOriginal)
    layer.register_forward_pre_hook(lambda *_: pytest.fail("the layer was called"))
    before = layer.weight._version
    effective_weight(layer)
    assert layer.weight._version == before


# --- errors of a variant ------------------------------------------------------------------------------------


def errors(name: str, step: Any, documents: Any = ()) -> Any:
    reference = family(name)
    made = step.compress(copy.deepcopy(reference), tiny_tokenizer(), documents).model
    return reference, made, weight_errors(reference, made, torch.float32)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "mixtral", "gpt_oss"])
def test_errors_are_those_of_the_weights(name: str) -> None:
    reference, made, found = errors(name, RoundToNearest(bits=3))
    for module, each in found.items():
        tensor = module if ".experts." in module else f"{module}.weight"
        before, after = reference.get_parameter(tensor), made.get_parameter(tensor)
        assert each.relative_error == pytest.approx(error(after, before), rel=1e-4, abs=1e-7)
        assert each.compared == 1.0
    changed = [module for module, each in found.items() if each.relative_error]
    assert len(changed) == len(found) - 1, "all but the head"


def test_int8_codes_are_compared_by_what_they_stand_for() -> None:
    _, made, found = errors("llama", LLMInt8())
    codes: Any = made.get_submodule("model.layers.0.mlp.up_proj")
    original = family("llama").get_parameter("model.layers.0.mlp.up_proj.weight")
    wanted = error(codes.codes * codes.steps[:, None], original)
    each = found["model.layers.0.mlp.up_proj"]
    assert each.relative_error == pytest.approx(wanted, rel=1e-3)
    assert "rounds its inputs" in each.note


@pytest.mark.parametrize("step", [SmoothQuant(), Awq(bits=4, scale_grid=4)], ids=lambda step: step.kind)
def test_folded_scales_are_no_error_of_weights(step: Any) -> None:
    _, _, found = errors("llama", step, random_documents(4, 16, seed=1))
    folded = [name for name, each in found.items() if "rescaled" in each.note]
    assert folded
    assert all(found[name].relative_error is None for name in folded)
    if step.kind == "smoothquant":
        assert {name.rpartition(".")[2] for name in folded} == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_coarse_rounding_is_not_taken_for_a_scale(bits: int) -> None:
    _, _, found = errors("llama", RoundToNearest(bits=bits, granularity="channel"))
    assert all(each.relative_error is not None for each in found.values())


def spread_ratios(reference: Any, made: Any) -> dict[str, float]:
    """How many times the error that 8 bits for each channel explain, by module, after undoing folded factors."""
    form = NumberFormat(type="int", bits=8, symmetric=True, granularity="channel")
    names = [name for name, _ in linears(reference) if name != "lm_head"]
    found = weight_errors(reference, made, torch.float32, formats=dict.fromkeys(names, form))
    return {name: (found[name].rounding_error or 0.0) / (found[name].explained or nan) for name in names}


@pytest.mark.parametrize("folded", [False, True])
def test_row_scales_in_another_order_are_damage_beside_folded_factors(folded: bool) -> None:
    reference = family("llama")
    with torch.no_grad():
        for _, module in linears(reference):
            module.weight.mul_(torch.linspace(0.5, 2.0, module.weight.shape[0])[:, None])
    made = copy.deepcopy(reference)
    if folded:
        made = SmoothQuant().compress(made, tiny_tokenizer(), random_documents(4, 16, seed=1)).model
    made = RoundToNearest(bits=8, granularity="channel").compress(made, tiny_tokenizer(), ()).model
    assert max(spread_ratios(reference, made).values()) < 2.5
    damaged: Any = made.get_submodule("model.layers.1.mlp.gate_proj")
    largest = damaged.weight.abs().amax(1, keepdim=True)
    damaged.weight.data *= largest.flip(0) / largest
    ratios = spread_ratios(reference, made)
    assert max(ratios, key=lambda name: ratios[name]) == "model.layers.1.mlp.gate_proj"
    assert ratios["model.layers.1.mlp.gate_proj"] > 20


def test_a_module_that_is_gone_or_has_another_shape_is_named() -> None:
    reference = family("llama")
    other: Any = copy.deepcopy(reference)
    other.model.layers[0].mlp.up_proj = nn.Linear(32, 63, bias=False)
    del other.model.layers[1].mlp.down_proj
    found = weight_errors(reference, other, torch.float32)
    assert found["model.layers.0.mlp.up_proj"].note == "the weight is 64 × 32, in the variant 63 × 32"
    assert "no module of this name" in found["model.layers.1.mlp.down_proj"].note
    assert found["model.layers.0.mlp.down_proj"].relative_error == 0.0


# --- real libraries -----------------------------------------------------------------------------------------


def with_torchao(layer: nn.Linear) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    holder = nn.Sequential(layer)
    quantization.quantize_(holder, quantization.Int8WeightOnlyConfig())
    return holder[0]


def with_torchao_inputs(layer: nn.Linear) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    holder = nn.Sequential(layer)
    quantization.quantize_(holder, quantization.Int8DynamicActivationInt8WeightConfig())
    return holder[0]


def with_bitsandbytes(layer: nn.Linear) -> nn.Module:
    library = pytest.importorskip("bitsandbytes")
    new: nn.Module = library.nn.Linear4bit(layer.in_features, layer.out_features, quant_type="nf4")
    new.load_state_dict(layer.state_dict())
    return new.to("cpu")


def with_bitsandbytes_int8(layer: nn.Linear) -> nn.Module:
    library = pytest.importorskip("bitsandbytes")
    new: nn.Module = library.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False)
    new.load_state_dict(layer.state_dict())
    return new.to("cpu")


def with_hqq(layer: nn.Linear) -> nn.Module:
    library = pytest.importorskip("hqq.core.quantize")
    config = library.BaseQuantizeConfig(nbits=8, group_size=32)
    made: nn.Module = library.HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu")
    return made


def with_quanto(layer: nn.Linear) -> nn.Module:
    library = pytest.importorskip("optimum.quanto")
    holder = nn.Sequential(layer)
    library.quantize(holder, weights=library.qint8)
    library.freeze(holder)
    return holder[0]


def with_torch(layer: nn.Linear) -> nn.Module:
    made: nn.Sequential = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, torch.qint8)
    return made[0]


LIBRARIES = {
    "torchao": (with_torchao, 0.02),
    "torchao, inputs": (with_torchao_inputs, 0.02),
    "bitsandbytes": (with_bitsandbytes, 0.15),
    "bitsandbytes, int8": (with_bitsandbytes_int8, 0.02),
    "hqq": (with_hqq, 0.02),
    "quanto": (with_quanto, 0.02),
    "torch": (with_torch, 0.02),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=may_saturate) if name == "torchao, inputs" else name for name in LIBRARIES]
)
def test_what_libraries_compute_with_is_found(name: str) -> None:
    compress, most = LIBRARIES[name]
    original = linear(inputs=64, outputs=32)
    before = original.weight.clone()
    module = compress(copy.deepcopy(original))
    found = effective_weight(module)
    assert not found.held
    assert 1e-4 < error(found.weight, before) < most
    x = torch.randn(5, 64)
    y = x @ found.weight.T + original.bias
    close = 0.05 if found.caveat or "bitsandbytes" in name else 2e-3
    assert error(module(x).detach(), y) < close
    if name != "bitsandbytes, int8":  # On some processors it multiplies floats, and rounds no input.
        assert bool(found.caveat) == (name in ("torchao, inputs", "torch"))


def test_the_norm_of_a_weight_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    form = NumberFormat(type="int", bits=4, symmetric=True, granularity="group", group_size=32)
    before_OI = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    after_OI = quantize(before_OI, format_of(form)).values
    one, other = nn.Sequential(nn.Linear(64, 16, bias=False)), nn.Sequential(nn.Linear(64, 16, bias=False))
    one[0].weight, other[0].weight = nn.Parameter(before_OI), nn.Parameter(after_OI)
    square, seen = errors_of_weights._square, list[Tensor]()

    def follow(values_OI: Tensor) -> float:
        seen.append(values_OI)
        return square(values_OI)

    monkeypatch.setattr(errors_of_weights, "_square", follow)
    found = errors_of_weights.weight_errors(one, other, torch.float32, formats={"0": form})["0"]
    lost = (after_OI - before_OI).double().norm() / before_OI.double().norm()
    assert found.relative_error == pytest.approx(float(lost))
    assert found.explained == pytest.approx(float(lost))
    assert len(seen) == 1
