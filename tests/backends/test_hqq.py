"""HQQ: what it does by hand, that it beats rounding, what is counted, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from harness.backends.hqq import Hqq
from harness.errors import BackendError
from tests.helpers.library_layers import MIDDLE, by_hand, compressed, effective, formats, logits, put
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama

library: Any = pytest.importorskip("hqq.core.quantize", exc_type=ImportError)
UP = ("*.gate_proj", "*.up_proj")


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_it_is_what_the_library_does(bits: int) -> None:
    def made(module: nn.Module) -> nn.Module:
        config = library.BaseQuantizeConfig(nbits=bits, group_size=16)
        made: nn.Module = library.HQQLinear(module, config, compute_dtype=torch.float32, device="cpu")
        return made

    done = compressed(tiny_llama(tied=False), "hqq", bits=bits, group_size=16)
    assert torch.equal(logits(done.model), logits(by_hand(lambda model: put(model, made))))


def test_it_fits_heavy_tails_better_than_rounding() -> None:
    """The same grid but for its zero points, which are moved until the sum of |error|^0.7 is small."""
    model = tiny_llama(tied=False)
    weight = model.get_parameter(f"{MIDDLE}.weight")
    weight.data *= 1 + 8 * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.02)
    found = effective(compressed(model, "hqq", bits=3, group_size=64, only=UP).model.get_submodule(MIDDLE))
    ours = compressed(model, "round_to_nearest", bits=3, group_size=64, symmetric=False, only=UP).model
    errors = [(each - weight).abs().pow(0.7).sum() for each in (found, effective(ours.get_submodule(MIDDLE)))]
    assert errors[0] < 0.98 * errors[1]


@pytest.mark.parametrize(("bits", "code_bits"), [(8, 8), (4, 4), (3, 3.2), (2, 2), (1, 1)])
def test_bytes_and_bits_are_those_of_the_tensors(bits: int, code_bits: float) -> None:
    found = formats(compressed(tiny_llama(tied=False), "hqq", bits=bits, group_size=16))[MIDDLE]
    expected = code_bits + 2 * 32 / 16  # Scale and zero point in the model's dtype.
    assert found.bits_per_weight == pytest.approx(expected, rel=0.01)
    assert found.stored_bytes == pytest.approx(64 * 112 * expected / 8, rel=0.01)
    assert (found.format.name, found.format.symmetric, found.kernel, found.format.ranges) == (
        f"int{bits}",
        False,
        "real",
        "hqq",
    )


def test_a_bias_is_counted_and_copied() -> None:
    model = tiny_llama(tied=False, mlp_bias=True)
    with torch.no_grad():
        model.get_parameter(f"{MIDDLE}.bias").fill_(3.0)
    done = compressed(model, "hqq", bits=8, group_size=16)
    found = formats(done)[MIDDLE]
    assert found.parameters == 64 * 112 + 112
    assert found.stored_bytes - found.bits_per_weight * 64 * 112 / 8 == pytest.approx(4 * 112)
    assert done.model.get_submodule(MIDDLE)(torch.zeros(1, 64)).mean() == pytest.approx(3.0, abs=0.1)
    other, expected = copy.deepcopy(done.model), logits(done.model)
    layer: Any = other.get_submodule(MIDDLE)
    layer.W_q.data.zero_()
    assert torch.equal(logits(done.model), expected)
    assert not torch.equal(logits(other), expected)


def test_layers_that_it_cannot_take_are_named() -> None:
    with pytest.raises(BackendError, match=r"hqq: model.layers.0.mlp.down_proj: its 112 inputs are not a multiple"):
        compressed(tiny_llama(tied=False), "hqq", bits=4)
    with pytest.raises(BackendError, match=r"hqq: transformer\.h\.0\S*: is a Conv1D"):
        compressed(tiny_gpt2(), "hqq", bits=4, group_size=8)


@pytest.mark.parametrize("fields", [{}, {"bits": 5}, {"bits": 4, "group_size": 12}])
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Hqq(**fields)
