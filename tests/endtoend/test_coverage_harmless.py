"""What must not be stopped for what no document touches: copies, other files of the same weights, every backend."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from harness.backends import Backend
from harness.plugins import load
from harness.selftest.mutants import library
from tests.helpers.checked_folders import change_tensors, check_folders, copy_pocket, save

STEPS = {
    "round_to_nearest": "bits: 4, group_size: 32",
    "gptq": "bits: 4, group_size: 32",
    "awq": "bits: 4, group_size: 32, scale_grid: 2, clip_grid: 2",
    "dense_and_sparse": "bits: 4",
    "mixed_precision": "bits: [4, 8], target_bits_per_weight: 6.0",
    "smoothquant": "into: norms_and_linears",
    "llm_int8": "threshold: 6.0",
    "activations": "bits: 8",
    "kv_cache": "bits: 8",
    "pytorch_dynamic_int8": "granularity: channel",
    "torchao": "method: int8_weight_only",
    "bitsandbytes": "method: nf4",
    "quanto": "weights: int8",
    "hqq": "bits: 4, group_size: 32",
    "llmcompressor": "scheme: W8A16",
    "modelopt": "scheme: int8_weights",
}
FIT = "calibration: {data: pocket-train, documents: 4, tokens: 64}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``ref`` with the embedded model, whose head has rows of its own: documents read few of the embedding."""
    monkeypatch.chdir(tmp_path)
    base = copy_pocket(tmp_path / "base")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    save(model, tmp_path / "ref")
    return tmp_path


def to(dtype: torch.dtype) -> Callable[[Path], None]:
    def cast(held: dict[str, Tensor]) -> None:
        held.update({name: each.to(dtype) for name, each in held.items()})

    return lambda folder: change_tensors(folder, cast)


def shard(folder: Path) -> None:
    make = library()["shards_saved_again"].on_disk
    assert make is not None
    make(folder)


def save_again(folder: Path) -> None:
    save(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), folder)


@pytest.mark.parametrize(
    ("change", "same_files"),
    [
        (lambda _: None, True),
        (save_again, False),
        (shard, False),
        (to(torch.bfloat16), False),
        (to(torch.float16), False),
    ],
    ids=["copy", "saved_again", "sharded", "bfloat16", "float16"],
)
def test_the_same_weights_in_other_files_are_not_stopped(
    change: Callable[[Path], None], same_files: bool, here: Path
) -> None:
    shutil.copytree(here / "ref", here / "var")
    change(here / "var")
    found = check_folders(here)
    assert found.code == 0, found.output
    assert found.failed() == found.failed("warn") == []
    untouched = next(m for m in found.run["measurements"] if m["name"] == "coverage.untouched_parameters")
    assert 0 < untouched["variant"] == untouched["reference"] < 0.5
    if same_files:
        assert any("same bytes" in text for text in found.notes("same model"))


@pytest.mark.parametrize("kind", STEPS)
def test_no_backend_is_stopped_for_what_no_document_touches(kind: str, here: Path) -> None:
    step = load(Backend, kind)
    if missing := [name for name in step.requires if find_spec(name) is None]:
        pytest.skip(f"needs {missing[0]}")
    found = check_folders(here, f"{{compress: [{{backend: {kind}, {STEPS[kind]}}}], artifact: none}}", more=FIT)
    failed = [name for name in found.failed() if name.startswith("coverage.") or name == "every weight is finite"]
    assert found.run, found.output
    assert failed == []
