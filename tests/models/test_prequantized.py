"""Checkpoints that libraries made: loaded to the same numbers, their formats told by what is stored and computed."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.errors import MissingDependencyError, ModelError
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.planning.specs import VariantSpec
from harness.records import ModelSpec
from harness.running.variant import make_variant
from tests.helpers import quantized_checkpoints as made
from tests.helpers.tiny_models import save, tiny_llama
from tests.models.test_loading import change_config, plan_of

IDS = torch.tensor([[0, 5, 9, 2, 40, 33, 7, 90]])
UP = "model.layers.0.mlp.up_proj"


@dataclass(frozen=True)
class Case:
    """A checkpoint and what must be said of its linear layers. bits: all that is stored for a weight."""

    library: str
    save: made.Save
    method: str
    format: str
    bits: tuple[float, float]
    kernel: str
    granularity: str = "channel"
    group_size: int | None = None
    activations: str = ""
    far: float = 0.2
    """Most that logits may be off those in full precision, of their norm."""
    dtype: Literal["float32", "float16"] = "float32"


W8A8 = "int8 per token, dynamic"
CASES = {
    "bitsandbytes int8": Case(
        "bitsandbytes",
        made.save_int8,
        "bitsandbytes",
        "int8",
        (8, 9),
        "real",
        activations=f"{W8A8}; columns with |x| >= 6 in full precision",
    ),
    "bitsandbytes nf4": Case(
        "bitsandbytes", made.save_nf4, "bitsandbytes", "nf4", (4, 5), "real", "group", 64, far=0.4
    ),
    "torchao int8": Case("torchao", made.save_torchao_int8, "torchao", "int8", (8, 9), "real"),
    "torchao w8a8": Case("torchao", made.save_torchao_w8a8, "torchao", "int8", (8, 9), "real", activations=W8A8),
    "compressed-tensors w4a16": Case(
        "llmcompressor", made.save_w4a16, "compressed-tensors", "int4", (4, 7), "simulated", "group", 16, far=0.4
    ),
    "compressed-tensors w8a8": Case(
        "llmcompressor", made.save_w8a8, "compressed-tensors", "int8", (8, 9), "simulated", activations=W8A8
    ),
    "compressed-tensors fp8": Case(
        "llmcompressor",
        made.save_fp8,
        "compressed-tensors",
        "fp8_e4m3",
        (8, 9),
        "simulated",
        activations="fp8_e4m3 per token, dynamic",
    ),
    "auto-round": Case(
        "auto_round", made.save_auto_round, "auto-round", "int4", (4, 7), "real", "group", 16, far=0.4, dtype="float16"
    ),
    "fp8 blocks": Case("torch", made.save_block_fp8, "fp8", "fp8_e4m3", (8, 9), "simulated", "none"),
}


EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name == "auto-round" else []) for name in CASES]
"""auto-round takes long to be imported."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_llama(tied=False, intermediate_size=128), tmp_path_factory.mktemp("source") / "model")


@pytest.fixture
def reference(case: str, source: Path) -> LoadedModel:
    return load(ModelSpec(model=str(source), dtype=CASES[case].dtype), "reference")


@pytest.fixture(scope="module")
def checkpoints(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def folder(case: str, source: Path, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(CASES[case].library)
    if case not in checkpoints:
        checkpoints[case] = CASES[case].save(source, tmp_path_factory.mktemp("quantized") / "checkpoint")
    return checkpoints[case]


def variant_of(reference: LoadedModel, folder: Path, **fields: Any) -> LoadedModel:
    spec = VariantSpec(model=str(folder), **fields)
    plan = plan_of(Path(reference.identity.source), spec, dtype=reference.identity.dtype)
    return make_variant(plan, reference, ())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("case", EVERY)
def test_a_checkpoint_computes_what_the_library_computes(case: str, folder: Path, reference: LoadedModel) -> None:
    variant = variant_of(reference, folder)
    with torch.no_grad():
        dtype = getattr(torch, CASES[case].dtype)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
        wanted = logits(theirs)
    found = logits(variant.model)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.equal(logits(variant.model), found)
    full = logits(reference.model)
    assert 0 < (found - full).norm() / full.norm() < CASES[case].far


@pytest.mark.parametrize("case", EVERY)
def test_formats_are_told_by_what_is_stored_and_computed(case: str, folder: Path, reference: LoadedModel) -> None:
    identity, wanted = variant_of(reference, folder).identity, CASES[case]
    found = {module.module: module for module in identity.modules}
    up = found[UP]
    assert (up.backend, up.format.name, up.kernel) == (wanted.method, wanted.format, wanted.kernel)
    assert wanted.bits[0] <= up.bits_per_weight <= wanted.bits[1]
    assert (up.format.granularity, up.format.group_size, str(up.activations or "")) == (
        wanted.granularity,
        wanted.group_size,
        wanted.activations,
    )
    assert up.stored_bytes == pytest.approx(up.bits_per_weight * 128 * 64 / 8)
    assert (up.parameters, up.role) == (128 * 64, "linear")
    norm = found["model.norm"]
    assert (norm.backend, norm.kernel, norm.format.name) == ("", "real", wanted.dtype)
    assert identity.parameters == reference.identity.parameters
    assert identity.simulated == (wanted.kernel == "simulated")
    assert set(found) == {module.module for module in reference.identity.modules}


def broken(folder: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint with other tensors."""
    target.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("case", ["compressed-tensors w8a8", "compressed-tensors w4a16", "fp8 blocks"])
def test_scales_that_are_missing_or_left_over_are_refused(
    case: str, folder: Path, reference: LoadedModel, tmp_path: Path
) -> None:
    name = next(name for name in load_file(folder / "model.safetensors") if name.startswith(UP) and "scale" in name)
    without = broken(folder, tmp_path / "without", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=r"up_proj"):
        variant_of(reference, without)
    more = broken(folder, tmp_path / "more", lambda tensors: tensors.update({f"{UP}.extra_scale": torch.ones(1)}))
    with pytest.raises(ModelError, match=r"unexpected.*extra_scale"):
        variant_of(reference, more)


@pytest.mark.parametrize("case", ["compressed-tensors fp8"])
def test_scales_that_the_loader_would_drop_are_refused(
    case: str, folder: Path, reference: LoadedModel, tmp_path: Path
) -> None:
    copy = broken(folder, tmp_path / "modelopt", lambda tensors: None)
    change_config(copy, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    with pytest.raises(ModelError, match=r"quant_method is 'modelopt', which transformers does not know"):
        variant_of(reference, copy)
    change_config(copy, quantization_config=None)
    with pytest.raises(ModelError, match=r"is stored as F8_E4M3.*no quantization_config"):
        variant_of(reference, copy)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["auto-round"])
def test_a_library_that_computes_in_one_dtype_alone_says_which(case: str, folder: Path, source: Path) -> None:
    with pytest.raises(ModelError, match=r"is torch\.float16, but declared is float32; .*set dtype: in reference:"):
        variant_of(load(ModelSpec(model=str(source)), "reference"), folder)


@pytest.mark.parametrize(
    ("method", "install"),
    [
        ("bitsandbytes", r'"lm-shipcheck\[bitsandbytes\]"'),
        ("torchao", r'"lm-shipcheck\[torchao\]"'),
        ("compressed-tensors", r'"lm-shipcheck\[llmcompressor\]"'),
        ("auto-round", r'"lm-shipcheck\[autoround\]"'),
        ("aqlm", "aqlm"),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(
    method: str, install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.models.prequantized._is_installed", lambda _: False)
    folder = save(tiny_llama(), tmp_path / "model")
    change_config(folder, quantization_config={"quant_method": method})
    with pytest.raises(MissingDependencyError, match=f"quantized with {method}.*pip install {install}"):
        load(ModelSpec(model=str(folder)), "x")


@pytest.mark.parametrize("method", ["quanto", "hqq"])
def test_methods_that_transformers_only_applies_say_what_to_do(method: str, tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "model")
    change_config(folder, quantization_config={"quant_method": method})
    with pytest.raises(ModelError, match=rf"whose saved checkpoints transformers cannot read; .*backend: {method}"):
        load(ModelSpec(model=str(folder)), "x")


def test_a_folder_of_quanto_is_told_by_its_map(tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "model")
    (folder / "quanto_qmap.json").write_text(json.dumps({UP: {"weights": "qint8"}}))
    with pytest.raises(ModelError, match=r"quanto_qmap\.json .* optimum-quanto, which transformers cannot read"):
        load(ModelSpec(model=str(folder)), "x")


def test_every_extra_that_is_named_exists() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    libraries = importlib.import_module("harness.models.prequantized").LIBRARIES
    extras = {package.split("[")[1].rstrip("]") for _, package in libraries.values() if "[" in package}
    assert extras
    assert all(f"\n{extra} = [" in text for extra in {*extras, "gguf", "llamacpp"})


def test_a_norm_of_another_shape_is_refused(tmp_path: Path) -> None:
    """With a quantizer transformers compares no shapes, and a norm of one value would be broadcast."""
    pytest.importorskip("bitsandbytes")
    folder = made.save_int8(save(tiny_llama(), tmp_path / "plain"), tmp_path / "int8")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the tensor model\.norm\.weight has the shape \[1\], expected \[64\]"):
        load(ModelSpec(model=str(folder)), "x")


@pytest.mark.parametrize("kind", ["sparse-24-bitmask", "sparse-bitmask"])
def test_bit_masks_that_no_library_reads_any_more_are_refused(kind: str, tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "m")
    sparse = {"format": kind, "sparsity_structure": "2:4", "global_sparsity": 0.5, "targets": ["Linear"]}
    change_config(folder, quantization_config={"quant_method": "compressed-tensors", "sparsity_config": sparse})
    said = (
        rf"config\.json: quantization_config\.sparsity_config\.format is '{kind}', which compressed-tensors wrote in "
        r"the past and does not read any more; save the model with dense weights"
    )
    with pytest.raises(ModelError, match=said):
        load(ModelSpec(model=str(folder)), "m")
