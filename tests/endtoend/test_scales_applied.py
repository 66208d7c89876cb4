"""Codes in files whose scales the loader does not apply: refused with the cause, on whichever side they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.checked_folders import change_config, change_tensors, check_folders, copy_pocket, pack_gptq

pytest.importorskip("compressed_tensors")

CODES = {"float": (torch.float8_e4m3fn, 448), "int": (torch.int8, 127)}


def store_codes(
    folder: Path, status: str, kind: str = "float", unscaled: bool = False, ignored: tuple[str, ...] = ()
) -> Path:
    """Store the projections of a folder as 8-bit codes in the way of compressed-tensors.

    status: what the config says of them; of frozen ones, symmetric formats have zero points too. unscaled: all scales
    are 1. ignored: patterns of layers that the config leaves plain although their codes are stored.
    """
    dtype, limit = CODES[kind]

    def store(held: dict[str, Tensor]) -> None:
        for name in [key for key in held if key.endswith("_proj.weight")]:
            weight_OI = held[name].float()
            scale_O1 = weight_OI.abs().amax(1, keepdim=True) / limit
            scale_O1 = torch.ones_like(scale_O1) if unscaled else scale_O1
            codes_OI = weight_OI / scale_O1
            held[name] = (codes_OI.round() if kind == "int" else codes_OI).to(dtype)
            held[f"{name}_scale"] = scale_O1.bfloat16()
            if status == "frozen":
                held[f"{name}_zero_point"] = torch.zeros_like(scale_O1).to(dtype)

    change_tensors(folder, store)
    weights = {"num_bits": 8, "type": kind, "strategy": "channel", "dynamic": False, "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    said = {"quant_method": "compressed-tensors", "format": f"{kind}-quantized", "quantization_status": status}
    change_config(
        folder, quantization_config=said | {"config_groups": {"group_0": group}, "ignore": ["lm_head", *ignored]}
    )
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["float", "int"])
@pytest.mark.parametrize("sides", [("var",), ("ref", "var")], ids=["variant", "both"])
def test_scales_that_the_loader_leaves_out_are_refused(sides: tuple[str, ...], kind: str, here: Path) -> None:
    for side in ("ref", "var"):
        copy_pocket(here / side)
    for side in sides:
        store_codes(here / side, "frozen", kind)
    found = check_folders(here)
    assert found.code == 2, found.output
    said = " ".join(found.output.split())
    assert str(here / sides[0]) in said
    assert "model.layers.0.self_attn.q_proj" in said
    assert "model.layers.0.self_attn.q_proj.weight_scale" in said
    assert "quantization_status is 'frozen'" in said


def test_scales_that_are_applied_fail_nothing(here: Path) -> None:
    copy_pocket(here / "ref")
    store_codes(copy_pocket(here / "var"), "compressed")
    found = check_folders(here)
    assert found.code == 0, found.output
    assert 0 < found.change("divergence.kl_mean") < 0.05


def test_codes_with_scales_of_one_are_the_weights(here: Path) -> None:
    copy_pocket(here / "ref")
    store_codes(copy_pocket(here / "var"), "frozen", unscaled=True)
    found = check_folders(here)
    assert found.code == 0, found.output
    assert 0 < found.change("divergence.kl_mean") < 0.05


def test_a_scale_of_the_inputs_is_none_of_the_weights(here: Path) -> None:
    copy_pocket(here / "ref")
    store_codes(copy_pocket(here / "var"), "frozen")

    def rename(held: dict[str, Tensor]) -> None:
        for name in [key for key in held if key.endswith("weight_scale")]:
            held[name.replace("weight_scale", "input_scale")] = held.pop(name)

    change_tensors(here / "var", rename)
    found = check_folders(here)
    assert found.code == 2, found.output
    assert "scale" in found.output


@pytest.mark.parametrize("ignored", ["re:.*layers.2.mlp.*", "model.layers.2.mlp.up_proj"])
def test_scales_of_a_layer_that_the_config_ignores_are_refused(ignored: str, here: Path) -> None:
    copy_pocket(here / "ref")
    store_codes(copy_pocket(here / "var"), "compressed", ignored=(ignored,))
    found = check_folders(here)
    assert found.code == 2, found.output
    assert "tensors unexpected: model.layers.2.mlp." in found.output
    assert "model.layers.2.mlp.up_proj.weight_scale" in found.output


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_scale_that_is_not_finite_fails_by_the_name_of_its_layer(value: float, here: Path) -> None:
    copy_pocket(here / "ref")
    pack_gptq(copy_pocket(here / "var"))

    def damage(held: dict[str, Tensor]) -> None:
        held["model.layers.1.mlp.up_proj.scales"][2, 5] = value

    change_tensors(here / "var", damage)
    found = check_folders(here)
    assert found.code == 1, found.output
    assert "every weight is finite" in found.failed()
    assert "model.layers.1.mlp.up_proj.weight, row 5" in found.output
