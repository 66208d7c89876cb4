"""GPTQ and AWQ folders without their library: what codes mean, by arithmetic and by the libraries that pack them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.errors import MissingDependencyError, ModelError
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.models.packed_integers import PackedLayout, read_layout, unpack_layer
from harness.records import ModelSpec
from tests.helpers import quantized_checkpoints as made
from tests.helpers.tiny_models import save, tiny_gpt2, tiny_llama
from tests.models.test_loading import change_config

SIZE, INPUTS, OUTPUTS, GROUPS = 16, 64, 48, 4
UP = "model.layers.0.mlp.up_proj"


def words(fields: list[int], bits: int) -> list[int]:
    """Fields one after the other, lowest bits first, as signed words of 32 bits."""
    whole = sum(field << (bits * place) for place, field in enumerate(fields))
    count = -(-len(fields) * bits // 32)
    return [_signed((whole >> (32 * place)) & (2**32 - 1)) for place in range(count)]


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def draw(bits: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes [I, O], zero points and scales [G, O], and the group of each input in a mixed order."""
    chance = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (INPUTS, OUTPUTS), generator=chance)
    zeros = torch.randint(2**bits, (GROUPS, OUTPUTS), generator=chance)
    scales = torch.rand(GROUPS, OUTPUTS, generator=chance).half()
    return codes, zeros, scales, torch.randperm(INPUTS, generator=chance) // SIZE


def meant(codes: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    """The weight [O, I], number by number."""
    found = torch.empty(OUTPUTS, INPUTS)
    for i, group in enumerate(groups.tolist()):
        for o in range(OUTPUTS):
            found[o, i] = float(scales[group, o]) * (int(codes[i, o]) - int(zeros[group, o]))
    return found


def gptq(bits: int, less: int) -> tuple[dict[str, Tensor], Tensor]:
    codes, zeros, scales, groups = draw(bits, bits)
    columns = [words(codes[:, o].tolist(), bits) for o in range(OUTPUTS)]
    if bits == 3:
        rows = [words(((row - less) % 8).tolist(), bits) for row in zeros]
    else:  # One less in every field of a word, which borrows from the next field.
        ones = less * sum(1 << place for place in range(0, 32, bits))
        rows = [[_signed((word - ones) % 2**32) for word in words(row.tolist(), bits)] for row in zeros]
    parts = {
        "qweight": torch.tensor(columns, dtype=torch.int32).T.contiguous(),
        "qzeros": torch.tensor(rows, dtype=torch.int32),
        "scales": scales,
        "g_idx": groups.int(),
    }
    return parts, meant(codes, zeros, scales, groups)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("less", [0, 1])
def test_gptq_is_read_as_it_is_meant(bits: int, less: int) -> None:
    parts, wanted = gptq(bits, less)
    found = unpack_layer("x", nn.Linear(INPUTS, OUTPUTS), parts, PackedLayout("gptq", False, less))
    assert found.weight.equal(wanted)
    stated = found.format
    assert (stated.format.name, stated.format.granularity, stated.format.group_size) == (f"int{bits}", "group", SIZE)
    assert stated.stored_bytes == sum(part.numel() * part.element_size() for part in parts.values())
    assert (found.wrapped > 0) == bool(less)


def test_awq_is_read_as_it_is_meant() -> None:
    codes, zeros, scales, _ = draw(4, 9)
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def packed(rows: Tensor) -> Tensor:
        mixed = [[row[start + place] for start in range(0, OUTPUTS, 8) for place in order] for row in rows.tolist()]
        return torch.tensor([words(row, 4) for row in mixed], dtype=torch.int32)

    parts = {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales}
    found = unpack_layer("x", nn.Linear(INPUTS, OUTPUTS), parts, PackedLayout("awq", False))
    assert found.weight.equal(meant(codes, zeros, scales, torch.arange(INPUTS) // SIZE))
    assert found.wrapped == 0


def test_an_order_by_activation_without_its_index_is_refused() -> None:
    parts = {name: part for name, part in gptq(4, 1)[0].items() if name != "g_idx"}
    module = nn.Linear(INPUTS, OUTPUTS)
    unpack_layer("model.x", module, parts, PackedLayout("gptq", True, 1))
    with pytest.raises(ModelError, match=r"model\.x: .*desc_act: true.*no g_idx"):
        unpack_layer("model.x", module, parts, PackedLayout("gptq", True, 1, by_activation=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"qweight": torch.zeros(7, OUTPUTS, dtype=torch.int32)}, "does not fit a layer of 48 outputs and 64 inputs"),
        ({"qweight": torch.zeros(10, OUTPUTS, dtype=torch.int32)}, "does not fit"),
        ({"qzeros": torch.zeros(GROUPS, 5, dtype=torch.int32)}, "does not fit"),
        ({"qzeros": torch.zeros(GROUPS, 6)}, "does not fit"),
        ({"scales": torch.ones(GROUPS + 1, OUTPUTS)}, "does not fit"),
        ({"scales": None}, "without scales"),
        ({"g_idx": torch.full((INPUTS,), GROUPS)}, "g_idx names groups that do not exist"),
        ({"g_idx": torch.full((INPUTS,), -1)}, "g_idx names groups"),
        ({"g_idx": torch.zeros(INPUTS - 1)}, "g_idx names groups"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Tensor | None], said: str) -> None:
    parts = gptq(4, 1)[0] | change
    given = {name: part for name, part in parts.items() if part is not None}
    with pytest.raises(ModelError, match=rf"model\.x: .*{said}"):
        unpack_layer("model.x", nn.Linear(INPUTS, OUTPUTS), given, PackedLayout("gptq", True, 1))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_llama(tied=False, intermediate_size=128), tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(autouse=True)
def without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed, GPTQModel is not."""
    from harness.models import prequantized

    real = prequantized._is_installed
    monkeypatch.setattr(prequantized, "_is_installed", lambda module: module != "gptqmodel" and real(module))


def opened(folder: Path, **fields: Any) -> LoadedModel:
    return load(ModelSpec(model=str(folder), **fields), "x")


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_one_rounding_in_two_formats_is_one_model(source: Path, tmp_path: Path, symmetric: bool) -> None:
    """AutoRound packs the same codes for GPTQ and for AWQ; weights are a quarter of a step off what was rounded."""
    pytest.importorskip("auto_round")
    end = "" if symmetric else "_asymmetric"
    folders = [getattr(made, f"save_auto_{kind}{end}")(source, tmp_path / kind) for kind in ("gptq", "awq")]
    one, other = (opened(folder) for folder in folders)
    state, wanted = one.model.state_dict(), other.model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.allclose(state[name], wanted[name], rtol=0, atol=1e-6) for name in wanted)
    before = load_file(source / "model.safetensors")
    scales = load_file(folders[0] / "model.safetensors")[f"{UP}.scales"].float()
    steps = scales.T.repeat_interleave(16, 1)
    weight = state[f"{UP}.weight"]
    off = ((weight - before[f"{UP}.weight"]) / steps).abs()
    assert off.mean() == pytest.approx(0.25, abs=0.02)
    assert off.max() < 1.1  # Half a step, and a whole one at the ends of the range.
    assert (weight / steps).round().sub(weight / steps).abs().max() < 1e-3
    for found, method in ((one, "gptq"), (other, "awq")):
        up = next(each for each in found.identity.modules if each.module == UP)
        assert (up.backend, up.format.name, up.format.granularity, up.format.group_size) == (
            method,
            "int4",
            "group",
            16,
        )
        assert (up.kernel, up.format.symmetric) == ("simulated", symmetric)
        assert 4 < up.bits_per_weight < 6.1
        assert found.identity.simulated
        (note,) = (note for note in found.notes if note.topic == "packed weights")
        assert "pip install gptqmodel optimum" in note.text


@pytest.mark.slow
def test_awq_is_what_the_library_that_packed_it_unpacks(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("auto_round")
    from auto_round.export.export_to_awq.utils import dequantize_gemm

    folder = made.save_auto_awq_asymmetric(source, tmp_path / "awq")
    tensors = load_file(folder / "model.safetensors")
    parts = [tensors[f"{UP}.{part}"] for part in ("qweight", "qzeros", "scales")]
    theirs = dequantize_gemm(*parts, 4, 16).T.float()
    assert torch.allclose(opened(folder).model.get_parameter(f"{UP}.weight"), theirs, rtol=1e-3, atol=0)


def packed_folder(model: Any, folder: Path, names: list[str], **said: Any) -> Path:
    """A folder in the format of GPTQ with random codes for some layers, and what they mean in ``wanted.pt``."""
    save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    wanted = {}
    for seed, name in enumerate(names):
        module = model.get_submodule(name)
        inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else module.weight.T.shape
        codes = torch.randint(16, (inputs, outputs), generator=torch.Generator().manual_seed(seed))
        tensors.pop(f"{name}.weight", None)
        columns = [words(codes[:, o].tolist(), 4) for o in range(outputs)]
        tensors[f"{name}.qweight"] = torch.tensor(columns, dtype=torch.int32).T.contiguous()
        tensors[f"{name}.qzeros"] = torch.tensor([words([7] * outputs, 4)], dtype=torch.int32)
        tensors[f"{name}.scales"] = torch.full((1, outputs), 0.01)
        wanted[name] = (codes - 8) * torch.tensor(0.01)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": -1} | said)
    torch.save(wanted, folder.with_suffix(".wanted"))
    return folder


def test_layers_that_keep_their_weight_the_other_way_round_are_filled(tmp_path: Path) -> None:
    name = "transformer.h.0.mlp.c_fc"
    folder = packed_folder(tiny_gpt2(), tmp_path / "gpt2", [name])
    found = opened(folder).model.get_submodule(name)
    assert isinstance(found, Conv1D)
    assert found.weight.equal(torch.load(folder.with_suffix(".wanted"))[name])


def test_settings_of_generation_come_along(tmp_path: Path) -> None:
    folder = packed_folder(tiny_llama(tied=False), tmp_path / "m", [UP])
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 17, "eos_token_id": 3}))
    config = opened(folder).model.generation_config
    assert config is not None
    assert (config.max_new_tokens, config.eos_token_id) == (17, 3)


def test_a_head_that_was_packed_by_itself_is_no_longer_tied(tmp_path: Path) -> None:
    folder = packed_folder(tiny_llama(tied=True), tmp_path / "m", ["lm_head"])
    found: Any = opened(folder).model
    wanted = torch.load(folder.with_suffix(".wanted"))["lm_head"]
    assert found.get_output_embeddings().weight.equal(wanted.T)
    assert not found.get_input_embeddings().weight.equal(wanted.T)


def test_layers_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    folder = packed_folder(tiny_llama(tied=False), tmp_path / "m", [UP])
    tensors = load_file(folder / "model.safetensors")
    more = tensors | {f"model.other.{part}": tensors[f"{UP}.{part}"].clone() for part in ("qweight", "scales")}
    save_file(more, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.other is packed \(gptq\), and the model has no such separate layer"):
        opened(folder)
    more = tensors | {"model.more.weight": torch.ones(2)}
    save_file(more, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"unexpected.*model\.more\.weight"):
        opened(folder)
    whole = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing.*model\.norm\.weight"):
        opened(folder)

    tensors["model.norm.weight"] = whole.to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight is stored as torch\.float8_e4m3fn"):
        opened(folder)
    tensors |= {"model.norm.weight": whole, f"{UP}.weight": torch.ones(112, 64)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj has both a weight and packed codes"):
        opened(folder)


def test_a_folder_without_packed_layers_is_not_what_it_says(tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "m")
    change_config(folder, quantization_config={"quant_method": "awq", "version": "gemm"})
    with pytest.raises(ModelError, match=r"config\.json declares awq, but no layer in its files is packed"):
        opened(folder)


@pytest.mark.parametrize(
    ("said", "layout"),
    [
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, r"gptq in the layout marlin"),
        ({"quant_method": "gptq", "checkpoint_format": "gptq_p"}, r"gptq in the layout gptq_p"),
        ({"quant_method": "awq", "version": "GEMV"}, r"awq in the layout gemv"),
        ({"quant_method": "awq", "version": "llm-awq"}, r"awq in the layout llm-awq"),
    ],
)
def test_layouts_for_one_kernel_name_the_library(tmp_path: Path, said: dict[str, str], layout: str) -> None:
    folder = save(tiny_llama(), tmp_path / "m")
    change_config(folder, quantization_config=said)
    with pytest.raises(MissingDependencyError, match=rf"{layout}\) needs the library gptqmodel"):
        opened(folder)


@pytest.mark.parametrize(
    ("said", "layout"),
    [
        ({"quant_method": "gptq"}, PackedLayout("gptq", True, 1)),
        ({"quant_method": "gptq", "checkpoint_format": "gptq_v2", "sym": False}, PackedLayout("gptq", False, 0)),
        ({"quant_method": "gptq", "format": "gptq"}, PackedLayout("gptq", True, 1)),
        ({"quant_method": "gptq", "desc_act": True}, PackedLayout("gptq", True, 1, by_activation=True)),
        (
            {"quant_method": "gptq", "desc_act": True, "static_groups": True},
            PackedLayout("gptq", True, 1),
        ),
        ({"quant_method": "awq", "version": "GEMM", "zero_point": True}, PackedLayout("awq", False)),
        ({"quant_method": "awq", "zero_point": False}, PackedLayout("awq", True)),
    ],
)
def test_layouts_are_read_from_the_configuration(tmp_path: Path, said: dict[str, Any], layout: PackedLayout) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    assert read_layout(tmp_path) == layout
