"""The own dtype of a model, from config.json and headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.models.headers import find_dtype, own_dtype
from harness.models.loading import load
from harness.pocket import MODEL_DIR
from harness.records import ModelSpec
from tests.commands.test_first_look import model_folder
from tests.helpers.tiny_models import family, save


@pytest.mark.parametrize(
    ("dtypes", "config", "dtype"),
    [
        ({"F32": 90}, {"dtype": "float16"}, "float16"),
        ({"F32": 90}, {"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"F32": 90}, {"dtype": "float16", "torch_dtype": "bfloat16"}, "float16"),
        ({"F32": 90}, {"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"BF16": 90, "F32": 10}, {}, "bfloat16"),
        ({"BF16": 90}, {"dtype": "float64"}, "bfloat16"),
        ({"F16": 90}, {"dtype": ["float32"]}, "float16"),
        ({"U8": 90}, {}, "float32"),
    ],
)
def test_config_json_counts_before_the_weights(
    tmp_path: Path, dtypes: dict[str, int], config: dict[str, object], dtype: str
) -> None:
    assert own_dtype(model_folder(tmp_path / "model", dtypes, config)) == dtype


def test_the_embedded_model_is_computed_in_float32() -> None:
    assert own_dtype(MODEL_DIR) == find_dtype(ModelSpec(model="pocket")) == "float32"


def test_a_gguf_file_is_dequantized_to_float32_and_a_model_elsewhere_is_not_known() -> None:
    assert find_dtype(ModelSpec(model="./m.gguf")) == "float32"
    assert find_dtype(ModelSpec(model="owner/name", file="m.gguf")) == "float32"
    assert find_dtype(ModelSpec(model="owner/that-is-not-here")) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_is_loaded_in_its_own_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model: Any = family("llama")
    save(model.to(dtype), tmp_path)
    for spec, taken in (
        (ModelSpec(model=str(tmp_path)), dtype),
        (ModelSpec(model=str(tmp_path), dtype="float32"), torch.float32),
    ):
        loaded = load(spec, "m")
        assert loaded.model.dtype == taken
        assert f"torch.{loaded.identity.dtype}" == str(taken)
