"""Mixtures packed expert by expert load into the stacks of their classes, with the bytes and formats of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

pytest.importorskip("compressed_tensors")

from harness.models.coverage.stated import compare_with_config
from harness.models.loading import load
from harness.modules.experts import expert_matrices
from harness.records import ModelSpec
from tests.helpers.expert_folders import GROUP, pack_projections
from tests.helpers.tiny_models import family, save

NAMES = {"mixtral": (("w1", "w3"), "w2"), "qwen3_moe": (("gate_proj", "up_proj"), "down_proj")}
FILES = {"mixtral": "block_sparse_moe", "qwen3_moe": "mlp"}


def file_bytes(folder: Path, parts: tuple[str, ...]) -> int:
    """Bytes of the tensors of experts of the first layer whose names contain one of these parts."""
    total = 0
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            if "layers.0." in name and any(f".experts.{e}.{part}." in name for e in range(4) for part in parts):
                tensor = file.get_tensor(name)
                total += tensor.numel() * tensor.element_size()
    return total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_mixture_packed_expert_by_expert_loads_into_its_stacks(name: str, dtype: str, tmp_path: Path) -> None:
    model: Any = family(name)
    folder = save(model.to(getattr(torch, dtype)), tmp_path / "model")
    values = pack_projections(folder)
    loaded = load(ModelSpec.model_validate({"model": str(folder), "dtype": dtype}), "m")
    first, second = NAMES[name]
    matrices = dict(expert_matrices(loaded.model))
    for layer in (0, 1):
        for expert in range(4):
            own = f"model.layers.{layer}.{FILES[name]}.experts.{expert}"
            merged = torch.cat([values[f"{own}.{part}.weight"] for part in first])
            inside = f"model.layers.{layer}.mlp.experts"
            for stack, wanted in (("gate_up_proj", merged), ("down_proj", values[f"{own}.{second}.weight"])):
                found = matrices[f"{inside}.{stack}[{expert}]"].weight
                assert found.dtype == getattr(torch, dtype)
                assert torch.equal(found.bfloat16(), wanted.bfloat16())
    stated = {module.module: module for module in loaded.identity.modules}
    for stack, parts in (("gate_up_proj", first), ("down_proj", (second,))):
        module: Any = stated[f"model.layers.0.mlp.experts.{stack}"]
        assert (module.format.name, module.format.group_size, module.format.symmetric) == ("int4", GROUP, True)
        assert (module.kernel, module.backend) == ("simulated", "compressed-tensors")
        assert module.stored_bytes == file_bytes(folder, parts)
        assert module.bits_per_weight == 8 * module.stored_bytes / module.parameters
    compared = compare_with_config(loaded)
    assert compared is not None
    assert not compared.plain
