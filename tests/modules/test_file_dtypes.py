"""Bytes of plain floats as in the files, whatever dtype they were loaded in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.models.loading import load
from harness.modules.file_dtypes import FileTensor, keep_file_dtypes, state_file_dtypes
from harness.records import FLOATS, ModelSpec, ModuleFormat, NumberFormat
from tests.helpers.tiny_models import save, tiny_llama


def module(name: str, values: int, dtype: str = "float32", **fields: object) -> ModuleFormat:
    form = FLOATS[dtype]
    known: dict[str, object] = {
        "module": name, "type": "Linear", "parameters": values, "stored_bytes": values * (form.bits or 0) // 8,
        "bits_per_weight": float(form.bits or 0), "format": form,
    }  # fmt: skip
    return ModuleFormat.model_validate(known | fields)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_a_loaded_model_counts_the_bytes_of_its_files(dtype: torch.dtype, computed: str, tmp_path: Path) -> None:
    model: Any = tiny_llama()
    folder = save(model.to(dtype), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    wanted = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    found = load(ModelSpec.model_validate({"model": str(folder), "dtype": computed}), "m").identity.modules
    assert sum(each.stored_bytes for each in found) == wanted
    assert {each.format.name for each in found} == {str(dtype).removeprefix("torch.")}


def test_tensors_of_different_dtypes_count_by_name() -> None:
    files = {
        "a.weight": FileTensor("bfloat16", 20),
        "a.bias": FileTensor("float32", 8),
        "norm.weight": FileTensor("float32", 16),
        "b.weight": FileTensor("bfloat16", 900),
        "experts.gate_up": FileTensor("float16", 200),
    }
    given = [module("a", 12), module("norm", 4), module("merged", 50), module("experts.gate_up", 100)]
    a, norm, merged, stack = state_file_dtypes(given, files)
    assert (a.stored_bytes, a.format.name, a.bits_per_weight) == (28, "bfloat16", 16.0)
    assert (norm.stored_bytes, norm.format.name) == (16, "float32")
    assert (merged.stored_bytes, merged.format.name) == (100, "bfloat16"), "another name: the dtype of most bytes"
    assert (stack.stored_bytes, stack.format.name) == (200, "float16")


def test_codes_and_shared_weights_stay() -> None:
    codes = module("a", 100, backend="gptq", stored_bytes=60, format=NumberFormat(type="int", bits=4))
    shared = module("lm_head", 0, stored_bytes=0)
    files = {"a.weight": FileTensor("bfloat16", 200), "lm_head.weight": FileTensor("bfloat16", 200)}
    assert state_file_dtypes([codes, shared], files)[0] == codes
    assert state_file_dtypes([codes, shared], files)[1].stored_bytes == 0
    assert state_file_dtypes([codes], {}) == (codes,)


def test_modules_that_a_step_left_alone_keep_the_dtype_of_the_files() -> None:
    before = [
        module("embed", 10, "bfloat16"),
        module("head", 0, "bfloat16", stored_bytes=0),
        module("a", 8, "bfloat16"),
    ]
    packed = module("a", 8, backend="round_to_nearest", stored_bytes=9, format=NumberFormat(type="int", bits=8))
    embed, head, a, new = keep_file_dtypes([module("embed", 10), module("head", 6), packed, module("new", 3)], before)
    assert (embed.stored_bytes, embed.format.name) == (20, "bfloat16")
    assert head.stored_bytes == 12, "a head that is no longer tied holds its own weights"
    assert a == packed
    assert new.stored_bytes == 12


class CountedReads(dict[str, FileTensor]):
    """The tensors of files, and how many of them were read in walks over all."""

    def __init__(self, content: dict[str, FileTensor]) -> None:
        super().__init__(content)
        self.read = 0

    def items(self) -> Any:
        for pair in super().items():
            self.read += 1
            yield pair


@pytest.mark.parametrize("modules", [10, 1000])
def test_the_files_are_walked_as_often_whatever_the_number_of_modules(modules: int) -> None:
    names = [f"model.layers.0.mlp.experts.{number}.up_proj" for number in range(modules)]
    files = CountedReads({f"{name}.weight": FileTensor("bfloat16", 20) for name in names})
    found = state_file_dtypes([module(name, 10) for name in names], files)
    assert {each.stored_bytes for each in found} == {20}
    assert files.read <= 4 * modules
