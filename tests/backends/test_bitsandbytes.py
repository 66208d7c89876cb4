"""bitsandbytes: what it does by hand, its grids beside ours, what is counted, and that nothing corrupts its weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from harness.backends.bitsandbytes import Bitsandbytes
from harness.errors import BackendError
from harness.models.identity import weights_sha256
from harness.numerics.grids import FP4_E2M1
from tests.helpers.library_layers import MIDDLE, agree, by_hand, compressed, effective, formats, logits, put, variant
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama

bnb: Any = pytest.importorskip("bitsandbytes", exc_type=ImportError)


def int8(module: nn.Module) -> nn.Module:
    old: Any = module
    new = bnb.nn.Linear8bitLt(old.in_features, old.out_features, bias=False, has_fp16_weights=False, threshold=6.0)
    new.weight = bnb.nn.Int8Params(old.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
    ready: nn.Module = new.to("cpu").eval()
    return ready


def four_bits(kind: str, double: bool) -> Any:
    def made(module: nn.Module) -> nn.Module:
        old: Any = module
        new = bnb.nn.Linear4bit(
            old.in_features, old.out_features, bias=False, compress_statistics=double, quant_type=kind
        )
        new.weight = bnb.nn.Params4bit(
            old.weight.data.clone(), requires_grad=False, compress_statistics=double, quant_type=kind, module=new
        )
        new.support_avx512bf16_for_cpu = False
        ready: nn.Module = new.to("cpu").eval()
        return ready

    return made


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"method": "llm_int8"}, int8),
        ({"method": "nf4"}, four_bits("nf4", False)),
        ({"method": "fp4"}, four_bits("fp4", False)),
        ({"method": "nf4", "double_quantize": True}, four_bits("nf4", True)),
    ],
)
def test_it_is_what_the_library_does(settings: dict[str, Any], make: Any) -> None:
    done = compressed(tiny_llama(tied=False), "bitsandbytes", **settings)
    expected = by_hand(lambda model: put(model, make))
    assert torch.equal(logits(done.model), logits(expected))


@pytest.mark.parametrize("double", [False, True])
def test_its_nf4_is_ours(double: bool) -> None:
    model = tiny_llama(tied=False)
    settings = {"double_quantize": double}
    found = compressed(model, "bitsandbytes", method="nf4", **settings).model.get_submodule(MIDDLE)
    ours = compressed(model, "round_to_nearest", format="nf4", **settings).model.get_submodule(MIDDLE)
    weight = model.get_parameter(f"{MIDDLE}.weight")
    if double:  # The processor's code looks scales up in a table, which now and then takes the second nearest.
        error = (effective(found) - effective(ours)).norm() / weight.norm()
        assert error < 0.01
    else:
        step_O1 = 0.31 * weight.abs().amax(1, keepdim=True)  # The widest gap of NF4, at its lower end.
        assert agree(effective(found), effective(ours), step_O1) < 1e-3


def test_its_fp4_is_not_e2m1() -> None:
    found = compressed(tiny_llama(tied=False), "bitsandbytes", method="fp4").model.get_submodule(MIDDLE)
    values = effective(found) / effective(found).abs().amax(1, keepdim=True)
    near = torch.tensor([0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1])
    assert ((values.abs()[..., None] - near).abs().amin(-1) < 1e-3).all()
    ours = torch.tensor(sorted({abs(value) / FP4_E2M1.largest for value in FP4_E2M1.values}))
    assert not torch.allclose(near, ours, atol=0.05)


def test_its_llm_int8_is_ours_for_what_float16_holds() -> None:
    """Other weights and inputs it rounds to float16 first; and it undoes scales with 6.200124e-05 for 1 / 127²."""
    model = tiny_llama(tied=False).half().float()
    found = compressed(model, "bitsandbytes", method="llm_int8").model.get_submodule(MIDDLE)
    ours = compressed(model, "llm_int8").model.get_submodule(MIDDLE)
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(1)).half().float()
    x[3, 5] = 8.0
    with torch.no_grad():
        torch.testing.assert_close(found(x), ours(x), rtol=1e-4, atol=1e-5)


def test_bytes_and_bits_are_those_of_the_tensors() -> None:
    model = tiny_llama(tied=False)
    groups = 64 * 112 // 64
    nf4 = formats(compressed(model, "bitsandbytes", method="nf4"))[MIDDLE]
    codebook = nf4.stored_bytes - 64 * 112 // 2 - 4 * groups
    assert codebook in (0, 64)  # The 16 values, unless all modules share one table.
    assert nf4.bits_per_weight == 8 * nf4.stored_bytes / (64 * 112)
    assert (nf4.format.name, nf4.format.group_size, nf4.kernel, nf4.type) == ("nf4", 64, "real", "Linear4bit")
    twice = formats(compressed(model, "bitsandbytes", method="nf4", double_quantize=True))[MIDDLE]
    tables = 4 * (16 + 256)  # The values of NF4 and of scales, which every layer keeps for itself.
    assert twice.stored_bytes == 64 * 112 // 2 + groups + 4 * -(-groups // 256) + 4 + tables
    int8 = formats(compressed(model, "bitsandbytes", method="llm_int8"))[MIDDLE]
    assert int8.stored_bytes == 64 * 112 + 4 * 112
    assert (int8.format.name, int8.format.granularity, int8.type) == ("int8", "channel", "Linear8bitLt")


@pytest.mark.parametrize("settings", [{"method": "nf4"}, {"method": "nf4", "double_quantize": True}, {"method": "fp4"}])
def test_forward_passes_and_saving_leave_its_weights_alone(settings: dict[str, Any]) -> None:
    """On processors with AVX512-BF16 the library packs at the first pass, and unpacks wrongly for state_dict()."""
    model = compressed(tiny_llama(tied=False), "bitsandbytes", **settings).model
    expected, before = logits(model), weights_sha256(model)
    for _ in range(3):
        assert torch.equal(logits(model), expected)
    assert weights_sha256(model) == before
    model.state_dict()
    assert weights_sha256(model) == before
    assert torch.equal(logits(model), expected)


def test_the_first_pass_of_llm_int8_moves_no_tensor() -> None:
    model = compressed(tiny_llama(tied=False), "bitsandbytes", method="llm_int8").model
    before = weights_sha256(model)
    expected = logits(model)
    assert weights_sha256(model) == before
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("method", ["nf4", "llm_int8"])
def test_copies_share_nothing(method: str) -> None:
    model = compressed(tiny_llama(tied=False), "bitsandbytes", method=method).model
    expected, other = logits(model), copy.deepcopy(model)
    other.get_parameter(f"{MIDDLE}.weight").data.zero_()
    if method == "llm_int8":
        layer: Any = other.get_submodule(MIDDLE)
        layer.state.CB.zero_()
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(other), expected)


def test_a_variant_says_what_its_inputs_become() -> None:
    done = variant("bitsandbytes", method="llm_int8", threshold=4.5)
    (found,) = [each for each in done.identity.modules if each.module == MIDDLE]
    assert str(found.activations) == "int8 per token, dynamic; columns with |x| >= 4.5 in full precision"
    assert any("float16" in note.text for note in done.notes)


def test_the_conv1d_of_gpt2_is_refused_with_what_to_do() -> None:
    with pytest.raises(BackendError, match=r"bitsandbytes: transformer\.h\.0\S*: is a Conv1D"):
        compressed(tiny_gpt2(), "bitsandbytes", method="nf4")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"method": "int8"},
        {"method": "llm_int8", "group_size": 64},
        {"method": "llm_int8", "double_quantize": True},
        {"method": "nf4", "threshold": 6.0},
        {"method": "nf4", "group_size": 32},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Bitsandbytes(**fields)
