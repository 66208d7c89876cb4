"""Rounding hooks on modules: what they compute, where their ranges live, and what the shared pass sees of them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from harness.errors import BackendError, ModelError
from harness.lockstep.hooks import ActiveSide, attach_taps
from harness.models.identity import weights_sha256
from harness.models.loading import load
from harness.modules.activations import RANGE, check_declared, round_inputs, round_within
from harness.modules.inspection import SHARED, module_formats, named_tensors
from harness.numerics.formats import MXFP4, MXFP8_E4M3, NVFP4, Format
from harness.numerics.granularity import Blocks
from harness.numerics.grids import FP8_E4M3, FP8_E5M2, integer
from harness.numerics.ranges import Limits
from harness.records import ModelSpec
from tests.helpers.number_formats import INT8_INPUTS
from tests.helpers.tiny_models import save, tiny_llama

CPU = torch.device("cpu")
TOKEN, TENSOR = (Format(integer(8), Blocks(kind)) for kind in ("token", "tensor"))
FORMS = [TOKEN, TENSOR, Format(integer(8, symmetric=False), Blocks("token")), MXFP4, MXFP8_E4M3, NVFP4]
FORMS += [Format(FP8_E4M3, Blocks("token")), Format(FP8_E5M2, Blocks("tensor"))]


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def within(low: float, high: float) -> Limits:
    return Limits(torch.tensor([low]), torch.tensor([high]))


def by_hand(x: Tensor, low: float, high: float, symmetric: bool) -> Tensor:
    """8-bit rounding of some values within one range, scalar by scalar."""
    if symmetric:
        scale, smallest, largest, zero = max(-low, high) / 127, -127, 127, 0
    else:
        scale, smallest, largest = (high - low) / 255, 0, 255
        zero = round(-low / scale)
    codes = [min(max(round(value / scale) + zero, smallest), largest) for value in x.flatten().tolist()]
    return torch.tensor([(code - zero) * scale for code in codes]).reshape(x.shape)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["token", "tensor"]), symmetric=st.booleans())
def test_every_token_or_tensor_has_its_own_range(seed: int, kind: Any, symmetric: bool) -> None:
    x = values(2, 3, 7, seed=seed) * 10 ** (values(2, 3, 1, seed=seed + 1) * 2)
    found = round_within(x, Format(integer(8, symmetric), Blocks(kind)), None)
    parts = x.reshape(-1, 7) if kind == "token" else x.reshape(1, -1)
    expected = [by_hand(part, min(0.0, float(part.min())), max(0.0, float(part.max())), symmetric) for part in parts]
    torch.testing.assert_close(found, torch.stack(expected).reshape(x.shape), rtol=1e-5, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_static_ranges_saturate(symmetric: bool) -> None:
    x = values(40, 8) * 3
    found = round_within(x, Format(integer(8, symmetric), Blocks("tensor")), within(-1.5, 2.0))
    torch.testing.assert_close(found, by_hand(x, -1.5, 2.0, symmetric), rtol=1e-5, atol=1e-7)
    assert float(found.max()) == pytest.approx(2.0, abs=1e-2)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{form.blocks.kind}")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_is_kept_and_the_grid_is_that_of_float32(form: Format, dtype: torch.dtype) -> None:
    x = values(3, 5, 40).to(dtype)
    found = round_within(x, form, None)
    assert (found.dtype, found.shape) == (dtype, x.shape)
    assert torch.equal(found, round_within(x.float(), form, None).to(dtype))
    assert not torch.equal(found, x)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{form.blocks.kind}")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(form: Format, bad: float) -> None:
    x = values(4, 32)
    x[2, 5] = bad
    found = round_within(x, form, None)
    assert str(found[2, 5].item()) == str(bad)
    x[2, 5] = found[2, 5] = 0
    assert torch.equal(found, round_within(x, form, None))


def test_a_call_without_tokens_is_let_through() -> None:
    assert round_within(torch.zeros(0, 8), TENSOR, None).shape == (0, 8)


def linear(form: Format = TOKEN, limits: Limits | None = None) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(16, 4)
    round_inputs(layer, form, limits, CPU)
    return layer


def test_the_module_multiplies_what_was_rounded() -> None:
    layer, x = linear(), values(3, 5, 16)
    expected = functional.linear(round_within(x, TOKEN, None), layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)


def test_copies_round_with_ranges_of_their_own() -> None:
    layer, x = linear(TENSOR, within(-2, 2)), values(5, 16)
    other, before = copy.deepcopy(layer), layer(x)
    assert torch.equal(other(x), before)
    other.get_buffer(RANGE).mul_(0.1)
    assert torch.equal(layer(x), before)
    assert not torch.equal(other(x), before)


def test_a_pickled_module_rounds_and_takes_further_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, seen = linear(TENSOR, within(-2, 2)), values(5, 16), []
    before, stored = layer(x), pickle.dumps(layer)
    # As in another process that gives its next hook the number which this one has.
    monkeypatch.setattr(RemovableHandle, "next_id", next(iter(layer._forward_pre_hooks)))
    other = pickle.loads(stored)  # noqa: S301 - made here
    other.register_forward_pre_hook(lambda *_: seen.append(1))
    assert torch.equal(other(x), before)
    assert seen == [1]


def test_a_static_range_is_a_buffer_that_the_hash_of_the_weights_holds() -> None:
    hashes = {weights_sha256(linear(TENSOR, within(-2, high))) for high in (2, 2.5)}
    hashes |= {weights_sha256(linear(TENSOR, None))}
    assert len(hashes) == 3
    assert dict(named_tensors(linear(TENSOR, within(-2, 2))))[RANGE].tolist() == [-2, 2]
    assert linear(TENSOR, within(-2, 2)).to("meta").get_buffer(RANGE).is_meta


@pytest.mark.parametrize("tied", [True, False])
def test_ranges_do_not_count_as_weights(tied: bool) -> None:
    model = tiny_llama(tied=tied)
    before = module_formats(model, {})
    for module in model.modules():
        if isinstance(module, nn.Linear):
            round_inputs(module, TENSOR, within(-2, 2), CPU)
    assert module_formats(model, {}) == before
    assert before[-1].module == "lm_head"
    assert before[-1].type.endswith(SHARED) == tied


def test_files_with_ranges_are_not_taken_for_the_model_without_them(tmp_path: Path) -> None:
    model = tiny_llama()
    round_inputs(model.get_submodule("model.layers.0.mlp.up_proj"), TENSOR, within(-2, 2), CPU)
    folder = save(model, tmp_path)
    with pytest.raises(ModelError, match=r"unexpected: model.layers.0.mlp.up_proj.activation_range"):
        load(ModelSpec(model=str(folder)), "again")


def test_the_shared_pass_sees_inputs_before_they_are_rounded() -> None:
    layer, x, stage = linear(), values(3, 16), ActiveSide()
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    model = nn.ModuleDict({"it": layer})
    with attach_taps(model, 0, stage, {"it": [inputs.append]}, {"it": [outputs.append]}), stage.activate(0):
        layer(x)
    assert torch.equal(inputs[0], x)
    assert torch.equal(outputs[0], functional.linear(round_within(x, TOKEN, None), layer.weight, layer.bias))


def test_layers_of_libraries_may_round_inside_their_product() -> None:
    class Rounding(nn.Linear):
        """Rounds its inputs itself."""

    model = nn.Sequential(nn.Linear(4, 4), Rounding(4, 4))
    check_declared(model, {"1": INT8_INPUTS})
    with pytest.raises(BackendError, match="0: input format declared int8 per token, dynamic, found no rounding"):
        check_declared(model, {"0": INT8_INPUTS})
    round_inputs(model[1], TOKEN, None, CPU)
    with pytest.raises(BackendError, match="1: input format declared no rounding, found int8"):
        check_declared(model, {})
