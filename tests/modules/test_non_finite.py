"""NaN and infinity are found in everything that is stored, and the expert or row is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from harness.modules.non_finite import describe, find_non_finite, format_units
from tests.helpers.tiny_models import family


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss"])
def test_a_sound_model_has_none(name: str) -> None:
    assert find_non_finite(family(name)) == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_expert_and_the_row_are_named(value: float) -> None:
    model: Any = copy.deepcopy(family("mixtral"))
    model.model.layers[1].mlp.experts.down_proj.data[2, 3, 0] = value
    model.model.embed_tokens.weight.data[5:8, 1] = value
    model.model.norm.weight.data[0] = value
    assert [str(each) for each in find_non_finite(model)] == [
        "model.embed_tokens.weight, rows 5–7",
        "model.layers.1.mlp.experts.down_proj, expert 2",
        "model.norm.weight",
    ]


def test_buffers_and_8_bit_floats_count() -> None:
    module = nn.Module()
    module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    module.register_buffer("codes", torch.tensor([[1.0, float("nan")]]).to(torch.float8_e4m3fn))
    module.register_buffer("computed", torch.tensor([float("nan")]), persistent=False)
    assert [each.tensor for each in find_non_finite(module)] == ["codes", "mask"]


def test_only_the_very_same_values_have_the_same_hash() -> None:
    one = torch.tensor([[1.0, float("inf")], [2.0, 3.0]])
    found = describe("x", one)
    assert found is not None
    assert describe("x", one + 1) == found
    for other in (-one, one.T, one.flatten(), torch.where(one.isinf(), float("nan"), one)):
        changed = describe("x", other)
        assert changed is not None
        assert changed.sha256 != found.sha256


def test_ranges_are_shown_and_the_rest_is_counted() -> None:
    assert format_units("row", [3]) == "row 3"
    assert format_units("row", [1, 2, 3, 7, 9, 10]) == "rows 1–3, 7, 9–10"
    assert format_units("row", range(0, 40, 2)).endswith("14 and 12 more")
