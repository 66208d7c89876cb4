"""torchao: what it does by hand, its grids beside ours, what is counted, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from harness.backends.torchao import Torchao
from harness.errors import BackendError
from tests.helpers.library_layers import (
    MIDDLE,
    agree,
    by_hand,
    compressed,
    effective,
    formats,
    largest,
    logits,
    variant,
)
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama

ao: Any = pytest.importorskip("torchao.quantization", exc_type=ImportError)

INT4: dict[str, Any] = {"method": "intx_weight_only", "bits": 4, "group_size": 16}
W8A8: dict[str, Any] = {"method": "int8_dynamic_activation_int8_weight"}


def configurations() -> dict[str, tuple[dict[str, Any], Any]]:
    asymmetric = ao.quant_primitives.MappingType.ASYMMETRIC
    per_16 = ao.PerGroup(16)
    dtypes: Any = torch  # Whose stubs know no integers of 4 bits.
    return {
        "int8": ({"method": "int8_weight_only"}, ao.Int8WeightOnlyConfig()),
        "int8 groups": ({"method": "int8_weight_only", "group_size": 16}, ao.Int8WeightOnlyConfig(granularity=per_16)),
        "fp8": ({"method": "float8_weight_only"}, ao.Float8WeightOnlyConfig()),
        "int8 inputs": (W8A8, ao.Int8DynamicActivationInt8WeightConfig()),
        "int4": (INT4, ao.IntxWeightOnlyConfig(weight_dtype=dtypes.int4, granularity=per_16)),
        "int3 asymmetric": (
            {"method": "intx_weight_only", "bits": 3, "symmetric": False},
            ao.IntxWeightOnlyConfig(weight_dtype=dtypes.int3, mapping_type=asymmetric),
        ),
        "int4, int8 inputs": (
            {**INT4, "method": "int8_dynamic_activation_intx_weight"},
            ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=dtypes.int4, weight_granularity=per_16),
        ),
    }


@pytest.mark.parametrize("name", configurations())
def test_it_is_what_the_library_does(name: str) -> None:
    settings, config = configurations()[name]
    precision = torch.get_float32_matmul_precision()
    done = compressed(tiny_llama(tied=False), "torchao", **settings)
    assert torch.get_float32_matmul_precision() == precision
    try:
        expected = by_hand(
            lambda model: ao.quantize_(
                model, config, filter_fn=lambda module, path: isinstance(module, nn.Linear) and path != "lm_head"
            )
        )
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.equal(logits(done.model), logits(expected))
    assert type(done.model.lm_head.weight) is nn.Parameter


SAME_GRID: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"method": "int8_weight_only"}, {"bits": 8, "granularity": "channel", "full_range": True}),
    ({"method": "int8_weight_only", "group_size": 16}, {"bits": 8, "group_size": 16, "full_range": True}),
    ({"method": "float8_weight_only"}, {"format": "fp8_e4m3", "granularity": "channel"}),
    (INT4, {"bits": 4, "group_size": 16, "full_range": True}),
    ({**INT4, "symmetric": False}, {"bits": 4, "group_size": 16, "symmetric": False}),
    (
        {"method": "intx_weight_only", "bits": 2},
        {"bits": 2, "granularity": "channel", "full_range": True},
    ),
]


@pytest.mark.parametrize(("settings", "ours"), SAME_GRID)
def test_its_grid_is_ours(settings: dict[str, Any], ours: dict[str, Any]) -> None:
    model = tiny_llama(tied=False)
    found = compressed(model, "torchao", **settings).model.get_submodule(MIDDLE)
    simulated = compressed(model, "round_to_nearest", **ours).model.get_submodule(MIDDLE)
    weight: Any = model.get_submodule(MIDDLE).weight
    steps = weight.abs().max() / (2 ** (settings.get("bits", 8) - 1) - 0.5)
    ends = largest(weight, settings.get("group_size")) if settings.get("symmetric", True) else None
    # It multiplies by the reciprocal of the scale, which can turn a tie the other way.
    assert agree(effective(found), effective(simulated), steps, left_out=ends) < 1e-3


def test_bytes_and_bits_are_those_of_the_tensors() -> None:
    int8 = formats(compressed(tiny_llama(tied=False), "torchao", method="int8_weight_only"))[MIDDLE]
    assert int8.parameters == 64 * 112
    assert 64 * 112 + 4 * 112 <= int8.stored_bytes <= 64 * 112 + 5 * 112  # Some releases keep zero points, too.
    assert int8.bits_per_weight == 8 * int8.stored_bytes / int8.parameters
    assert (int8.format.name, int8.format.granularity, int8.kernel) == ("int8", "channel", "real")


def test_codes_of_4_bits_in_a_byte_each_are_called_simulated() -> None:
    done = compressed(tiny_llama(tied=False), "torchao", **INT4)
    found = formats(done)[MIDDLE]
    assert found.format.name == "int4"
    assert found.bits_per_weight > 8 + 32 / 16
    assert found.kernel == "simulated"
    assert any("stores 10.5 bits per weight" in note.text for note in done.notes), done.notes


def test_products_of_integers_are_real_and_products_of_what_integers_stand_for_are_not() -> None:
    done = variant("torchao", **W8A8).identity
    (found,) = [each for each in done.modules if each.module == MIDDLE]
    assert (str(found.activations), found.kernel) == ("int8 per token, dynamic", "real")
    done = variant("torchao", **{**INT4, "bits": 8, "method": "int8_dynamic_activation_intx_weight"}).identity
    (found,) = [each for each in done.modules if each.module == MIDDLE]
    assert (str(found.activations), found.kernel) == ("asymmetric int8 per token, dynamic", "simulated")


def test_a_variant_counts_its_levels() -> None:
    (found,) = [each for each in variant("torchao", **INT4).identity.modules if each.module == MIDDLE]
    assert found.distinct_values is not None
    assert 8 < found.distinct_values <= 16


def test_copies_share_nothing() -> None:
    model = compressed(tiny_llama(tied=False), "torchao", method="int8_weight_only").model
    expected, other = logits(model), copy.deepcopy(model)
    weight: Any = other.get_parameter(f"{MIDDLE}.weight")
    weight.qdata.zero_()
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(other), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {**INT4, "group_size": 32},
            r"torchao: model.layers.0.mlp.down_proj: its 112 inputs are not a multiple of .* 32",
        ),
        ({"method": "int4_weight_only", "group_size": 32}, r"torchao: model\.layers\.0.*CUDA devices and bfloat16"),
    ],
)
def test_layers_that_it_cannot_take_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        compressed(tiny_llama(tied=False), "torchao", **settings)


def test_the_conv1d_of_gpt2_is_refused_with_what_to_do() -> None:
    with pytest.raises(BackendError, match=r"torchao: transformer\.h\.0\S*: is a Conv1D, .* another backend"):
        compressed(tiny_gpt2(), "torchao", method="int8_weight_only")


def test_what_is_quantized_already_is_refused() -> None:
    model = compressed(tiny_llama(tied=False), "torchao", method="int8_weight_only", only=("*.gate_proj",)).model
    with pytest.raises(BackendError, match=r"gate_proj: its weight is a Int8Tensor already"):
        compressed(model, "torchao", method="int8_weight_only")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"method": "int8_weight_only", "bits": 8},
        {"method": "intx_weight_only"},
        {"method": "float8_weight_only", "symmetric": False},
        {**W8A8, "group_size": 32},
        {"method": "int4_weight_only", "group_size": 48},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Torchao(**fields)
