"""What files say of themselves and what they hold: layers left plain, other bits than stated, scales of a KV cache."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from torch import Tensor

from harness.selftest.flow import selftest
from harness.terminal import Terminal
from tests.helpers.checked_folders import (
    SIZES,
    change_config,
    change_tensors,
    check_folders,
    copy_pocket,
    pack_gptq,
    save,
    with_tower,
    write_rules,
)

SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.parametrize(
    ("part", "said", "named"),
    [
        ("layers.2.", "21 of 28 linear layers", "block 2"),
        ("up_proj", "24 of 28 linear layers", "up_proj, blocks 0–3"),
        ("", "1 of 28 linear layers", "self_attn.k_proj, blocks 0–3"),
    ],
)
def test_layers_that_were_forgotten_fail(part: str, said: str, named: str, here: Path) -> None:
    copy_pocket(here / "ref")
    only = "layers.0.self_attn.q_proj"
    pack_gptq(copy_pocket(here / "var"), lambda name: part not in name if part else only in name)
    found = check_folders(here)
    assert found.code == 1, found.output
    assert found.failed() == ["coverage.unquantized"]
    (text,) = found.notes("quantization coverage")
    assert said in text
    assert named in text
    assert "gptq, int4 in groups of 32" in text


@pytest.mark.parametrize(
    "said",
    [
        {"modules_to_not_convert": ["model.layers.2"]},
        {"dynamic": {r"-:.*layers\.2\.": {}}},
        {},
    ],
)
def test_layers_that_the_config_leaves_plain_fail_nothing(said: dict[str, Any], here: Path) -> None:
    copy_pocket(here / "ref")
    pack_gptq(copy_pocket(here / "var"), lambda name: not said or "layers.2." not in name, **said)
    found = check_folders(here)
    assert found.code == 0, found.output
    assert found.notes("quantization coverage") == []
    assert found.change("coverage.unquantized") == 0


@pytest.mark.parametrize(("said", "named"), [({"bits": 8}, "bits: 8"), ({"group_size": 128}, "group_size: 128")])
def test_a_config_that_states_another_format_is_refused(said: dict[str, Any], named: str, here: Path) -> None:
    copy_pocket(here / "ref")
    pack_gptq(copy_pocket(here / "var"))
    config = json.loads((here / "var" / "config.json").read_text())["quantization_config"]
    change_config(here / "var", quantization_config=config | said)
    found = check_folders(here)
    assert found.code == 2, found.output
    assert f"config.json says {named}" in found.output
    assert "correct config.json, or export the model again" in found.output


@pytest.mark.parametrize(("said", "named"), [({"sym": False}, "(sym)"), ({"desc_act": True}, "desc_act: true")])
def test_a_config_that_is_wrong_without_effect_is_noted(said: dict[str, Any], named: str, here: Path) -> None:
    copy_pocket(here / "ref")
    pack_gptq(copy_pocket(here / "var"), **said)
    found = check_folders(here)
    assert found.code == 0, found.output
    assert any(named in text for text in found.notes("quantization config"))


def test_zero_points_that_symmetric_kernels_never_read_are_a_warning(here: Path) -> None:
    copy_pocket(here / "ref")
    pack_gptq(copy_pocket(here / "var"))
    key = "model.layers.0.mlp.up_proj.qzeros"
    change_tensors(here / "var", lambda held: held.update({key: torch.full_like(held[key], 0x76777777)}))
    (text,) = check_folders(here).notes("quantization config")
    assert "1 of 28 layers hold other zero points, model.layers.0.mlp.up_proj first" in text


@pytest.mark.parametrize("step", ["{backend: activations, bits: 8}", "{backend: kv_cache, bits: 8}"])
def test_a_quantized_reference_is_said(step: str, here: Path) -> None:
    pack_gptq(copy_pocket(here / "ref"))
    shutil.copytree(here / "ref", here / "var")
    found = check_folders(here, f"{{model: ./var, compress: [{step}], artifact: none}}")
    assert found.code == 0, found.output
    (text,) = found.notes("quantized reference")
    assert "the reference is itself quantized: 28 of 29 linear layers hold gptq, int4 in groups of 32" in text
    assert "losses are counted from these weights" in text


def test_a_reference_in_full_precision_is_no_quantized_one(here: Path) -> None:
    copy_pocket(here / "ref")
    shutil.copytree(here / "ref", here / "var")
    found = check_folders(here)
    assert found.notes("quantized reference") == []
    (text,) = found.notes("same model")
    assert text == "reference and variant are the same bytes: every change is zero by construction"


def to_block_fp8(held: dict[str, Tensor]) -> None:
    for name in [name for name in held if "language_model" in name and "_proj.weight" in name]:
        rows, inputs = held[name].shape
        blocks = held[name].view(rows // 16, 16, inputs // 16, 16).transpose(1, 2)
        scale = blocks.abs().amax((2, 3)) / 448
        codes = (blocks / scale[:, :, None, None]).to(torch.float8_e4m3fn)
        held |= {name: codes.transpose(1, 2).reshape(rows, inputs), f"{name}_scale_inv": scale}


@pytest.mark.parametrize("nested", [True, False])
def test_a_quantization_config_inside_a_wrapper_is_read(nested: bool, here: Path) -> None:
    save(with_tower(), here / "ref")
    shutil.copytree(here / "ref", here / "var")
    change_tensors(here / "var", to_block_fp8)
    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    said |= {"modules_to_not_convert": ["lm_head", "vision_tower", "multi_modal_projector"]}
    text = json.loads((here / "var" / "config.json").read_text())["text_config"]
    fields = {"text_config": text | {"quantization_config": said}} if nested else {"quantization_config": said}
    change_config(here / "var", **fields)
    found = check_folders(here)
    assert found.code == 0, found.output
    layers = [m for m in found.run["variant"]["modules"] if m["backend"] == "fp8"]
    assert len(layers) == 14
    assert found.change("coverage.unquantized") == 0


def test_an_unknown_method_inside_a_wrapper_is_refused_where_it_stands(here: Path) -> None:
    save(with_tower(), here / "ref")
    shutil.copytree(here / "ref", here / "var")
    text = json.loads((here / "var" / "config.json").read_text())["text_config"]
    change_config(here / "var", text_config=text | {"quantization_config": {"quant_method": "magic"}})
    found = check_folders(here)
    assert found.code == 2
    assert "text_config.quantization_config.quant_method is 'magic'" in found.output


def test_stacked_experts_in_mxfp4_are_counted_as_in_the_files(here: Path) -> None:
    sizes = SIZES | {"intermediate_size": 64, "head_dim": 16, "sliding_window": 128}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    routed: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": rope}
    model: Any = transformers.GptOssForCausalLM(transformers.GptOssConfig(**sizes, **routed))
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    packed = {}
    for number, layer in enumerate(model.model.layers):
        for part in ("gate_up_proj", "down_proj"):
            weight = getattr(layer.mlp.experts, part)
            experts, inputs, outputs = weight.shape
            codes = torch.randint(16, (experts, outputs, inputs // 32, 32))
            powers = torch.randint(119, 123, (experts, outputs, inputs // 32))
            values = grid[codes] * 2.0 ** (powers - 127)[..., None]
            weight.data = values.reshape(experts, outputs, inputs).transpose(1, 2).contiguous()
            name = f"model.layers.{number}.mlp.experts.{part}"
            packed[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
            packed[f"{name}_scales"] = powers.to(torch.uint8)
    save(model.to(torch.bfloat16), here / "ref")
    shutil.copytree(here / "ref", here / "var")

    def swap(held: dict[str, Tensor]) -> None:
        for name in [name for name in held if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
            del held[name]
        held |= packed

    change_tensors(here / "var", swap)
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    change_config(here / "var", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": plain})
    found = check_folders(here, reference="{model: ./ref, attention: eager, dtype: bfloat16}")
    assert found.code == 0, found.output
    assert found.change("divergence.kl_mean") == 0
    stacks = [m for m in found.run["variant"]["modules"] if m["format"]["element"] == "mxfp4"]
    assert len(stacks) == 4
    assert {(m["bits_per_weight"], m["kernel"], m["backend"]) for m in stacks} == {(4.25, "simulated", "mxfp4")}
    (told,) = [m["variant"] for m in found.run["measurements"] if m["name"] == "memory.weight_bytes"]
    header = 8 + int.from_bytes((here / "var" / "model.safetensors").read_bytes()[:8], "little")
    assert told == (here / "var" / "model.safetensors").stat().st_size - header
    assert not any("same bytes" in text for text in found.notes("same model"))


@pytest.mark.parametrize("names", [("self_attn.k_scale", "self_attn.v_scale"), ("self_attn.k_proj.k_scale",)])
def test_scales_of_a_kv_cache_are_said_to_be_some(names: tuple[str, ...], here: Path) -> None:
    copy_pocket(here / "ref")
    scales = {f"model.layers.{n}.{name}": torch.tensor(0.05) for n in range(4) for name in names}
    change_tensors(copy_pocket(here / "var"), lambda held: held.update(scales))
    found = check_folders(here)
    assert found.code == 0, found.output
    (text,) = found.notes("KV cache scales")
    assert f"its files hold {len(scales)} scales of an 8-bit KV cache" in text
    assert "declare kv_cache_scheme in config.json or add the step kv_cache" in text
    assert not any("same bytes" in said for said in found.notes("same model"))


def test_scales_of_a_kv_cache_must_be_finite(here: Path) -> None:
    copy_pocket(here / "ref")
    scale = {"model.layers.0.self_attn.k_scale": torch.tensor(float("nan"))}
    change_tensors(copy_pocket(here / "var"), lambda held: held.update(scale))
    found = check_folders(here)
    assert found.code == 1, found.output
    assert "model.layers.0.self_attn.k_scale" in found.output


def test_a_declared_cache_format_is_in_the_record(here: Path) -> None:
    pytest.importorskip("compressed_tensors")
    copy_pocket(here / "ref")
    scales = {f"model.layers.{n}.self_attn.{k}_scale": torch.tensor(5.0) for n in range(4) for k in "kv"}
    change_tensors(copy_pocket(here / "var"), lambda held: held.update(scales))
    said = {"quant_method": "compressed-tensors", "format": "dense", "quantization_status": "frozen", "ignore": []}
    change_config(here / "var", quantization_config=said | {"config_groups": {}, "kv_cache_scheme": SCHEME})
    found = check_folders(here)
    assert found.code == 0, found.output
    assert found.notes("KV cache scales") == []
    cache = found.run["variant"]["cache"]
    assert (cache["keys"]["element"], cache["keys"]["granularity"]) == ("fp8_e4m3", "tensor")
    assert cache["bits_per_value"] == 8
    assert found.change("divergence.kl_mean") > 0


def test_the_rules_of_ship_kill_the_mutants_that_no_document_shows(here: Path) -> None:
    write_rules(here)
    names = ("unread_row_not_finite", "block_left_unquantized", "bits_misstated", "shards_saved_again")
    code = selftest(
        "pocket", "./gate.yaml", "./suite.yaml", names, here / "runs", Terminal(Console(file=io.StringIO()))
    )
    content = json.loads((here / "runs" / "selftest" / "gate.json").read_text())
    assert code == 0, content
    found = {each["name"]: (each["result"], {by["metric"] for by in each["by"]}) for each in content["outcomes"]}
    assert found == {
        "shards_saved_again": ("passed", set()),
        "unread_row_not_finite": ("killed", {"coverage.non_finite", "coverage.untouched_changed", ""}),
        "block_left_unquantized": ("killed", {"coverage.unquantized"}),
        "bits_misstated": ("killed", {""}),
    }
