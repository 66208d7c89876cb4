"""PyTorch's dynamic INT8: what it does by hand, its grid beside ours, what is counted, what is refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import BackendError
from harness.models.identity import weights_sha256
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

NAME = "pytorch_dynamic_int8"


def test_it_is_what_pytorch_does() -> None:
    def change(model: Any) -> Any:
        head, model.lm_head = model.lm_head, nn.Identity()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        done.lm_head = head
        return done

    done = compressed(tiny_llama(tied=False), NAME)
    assert torch.equal(logits(done.model), logits(by_hand(change)))
    assert type(done.model.lm_head) is nn.Linear


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_its_grid_is_ours(granularity: str) -> None:
    model = tiny_llama(tied=False)
    found = compressed(model, NAME, granularity=granularity).model.get_submodule(MIDDLE)
    ours = compressed(model, "round_to_nearest", bits=8, granularity=granularity, full_range=True).model
    weight: Any = model.get_submodule(MIDDLE).weight
    # Its scales are computed in double precision, which can turn a tie the other way.
    steps, ends = weight.abs().max() / 127.5, largest(weight)
    assert agree(effective(found), effective(ours.get_submodule(MIDDLE)), steps, left_out=ends) < 1e-3


def test_inputs_have_128_codes() -> None:
    """The processor's sums of two products in 16 bits cannot overflow then."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    model = tiny_llama(tied=False)
    model.get_parameter(f"{MIDDLE}.weight").data[:, 1:] = 0
    module = compressed(model, NAME).model.get_submodule(MIDDLE)
    x = torch.zeros(4001, 64)
    x[:, 0] = torch.linspace(0, 1, 4001)
    assert len(module(x)[:, 0].round(decimals=7).unique()) == 128


def test_packed_weights_are_counted_and_hashed() -> None:
    model = tiny_llama(tied=False)
    done = compressed(model, NAME, granularity="channel")
    found = formats(done)[MIDDLE]
    assert found.stored_bytes == 64 * 112 + 8 * 112
    assert found.bits_per_weight == 8 + 64 / 64
    assert (found.format.name, found.format.granularity, found.kernel) == ("int8", "channel", "real")
    assert formats(compressed(model, NAME))[MIDDLE].stored_bytes == 64 * 112 + 8
    with torch.no_grad():
        model.get_parameter(f"{MIDDLE}.weight").mul_(-1)
    assert weights_sha256(compressed(model, NAME, granularity="channel").model) != weights_sha256(done.model)


def test_a_bias_is_counted() -> None:
    found = formats(compressed(tiny_llama(tied=False, mlp_bias=True), NAME))[MIDDLE]
    assert found.parameters == 64 * 112 + 112
    assert found.stored_bytes == 64 * 112 + 8 + 4 * 112


def test_no_module_counts_for_another() -> None:
    """Unpacked weights are new tensors, whose places are given away again."""
    identity = variant(NAME).identity
    found = [each for each in identity.modules if each.backend == NAME]
    assert len(found) == 14
    assert all(each.stored_bytes >= each.parameters for each in found)
    assert {each.role for each in found} == {"linear"}
    assert all(
        (each.kernel, str(each.activations)) == ("real", "asymmetric int8 per tensor, dynamic") for each in found
    )


def test_copies_compute_the_same() -> None:
    model = compressed(tiny_llama(tied=False), NAME).model
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_other_dtypes_and_layers_are_refused_with_what_to_do() -> None:
    with pytest.raises(BackendError, match=rf"{NAME}: model\S+: its weight is bfloat16, .* float32; set dtype:"):
        compressed(tiny_llama(tied=False).bfloat16(), NAME)
    with pytest.raises(BackendError, match=rf"{NAME}: transformer\.h\.0\S*: is a Conv1D"):
        compressed(tiny_gpt2(), NAME)
