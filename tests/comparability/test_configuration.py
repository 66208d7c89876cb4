"""Fields of config.json: what a difference means, and from which position on it matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.folders import Pair, edit

CONFIG = "config.json"
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1000.0}
YARN = DYNAMIC | {"rope_type": "yarn"}


@pytest.mark.parametrize(
    ("ours", "theirs", "field", "position", "severity"),
    [
        ({}, {"rope_parameters": DYNAMIC}, "rope_parameters.rope_type", 512, "beyond_inputs"),
        ({}, {"max_position_embeddings": 131072}, "max_position_embeddings", 512, "beyond_inputs"),
        ({}, {"max_position_embeddings": 256}, "max_position_embeddings", 256, "at_once"),
        (
            {"model_type": "mistral", "sliding_window": 256},
            {"model_type": "mistral", "sliding_window": None},
            "sliding_window",
            256,
            "at_once",
        ),
        (
            {"model_type": "mistral", "sliding_window": 512},
            {"model_type": "mistral", "sliding_window": None},
            "sliding_window",
            512,
            "beyond_inputs",
        ),
        ({}, {"rope_parameters": YARN}, "rope_parameters.rope_type", 1, "at_once"),
        (
            {},
            {"rope_parameters": YARN, "max_position_embeddings": 2048},
            "rope_parameters.rope_type",
            1,
            "beyond_inputs",
        ),
    ],
)
def test_what_matters_only_in_long_texts_says_from_where(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], field: str, position: int, severity: str
) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / CONFIG, **ours)
    pair.edit(CONFIG, **theirs)
    (found,) = (each for each in pair.find("configuration") if each.field == field)
    assert (found.severity, found.from_position) == (severity, position)
    assert pair.compare().comparable == ("no" if severity == "at_once" else "partly")


def test_a_field_that_the_class_does_not_declare_is_named_as_such(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(CONFIG, logit_scale=0.5)
    (found,) = pair.find("configuration")
    assert (found.field, found.severity) == ("logit_scale", "beyond_inputs")
    assert found.meaning.startswith("LlamaConfig does not declare it")


def test_a_field_of_every_token_is_in_the_measured_numbers(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(CONFIG, rms_norm_eps=1e-6)
    (found,) = pair.find("configuration")
    assert found.severity == "informative"
    assert pair.compare().comparable == "yes"


def test_defaults_written_out_and_facts_about_the_origin_are_no_difference(tmp_path: Path) -> None:
    pair = Pair(tmp_path)

    def leave_out(config: dict[str, Any]) -> None:
        for key in ("attention_bias", "mlp_bias", "head_dim", "pretraining_tp"):
            del config[key]

    pair.edit(
        CONFIG, leave_out, transformers_version="4.1.0", torch_dtype="float16", dtype="float32", _name_or_path="x",
        quantization_config={"quant_method": "gptq", "bits": 4}, use_cache=False,
    )  # fmt: skip
    assert not pair.find("configuration")


def test_a_kind_of_model_that_transformers_does_not_know_is_compared_as_written(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / CONFIG, model_type="no_such_model")
    pair.edit(CONFIG, model_type="no_such_model", window_of_its_own=3)
    (found,) = pair.find("configuration")
    assert (found.field, found.reference, found.variant) == ("window_of_its_own", "none", "3")


def test_towers_for_images_matter_for_images(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    for folder, side in ((pair.reference, 2), (pair.variant, 4)):
        edit(folder / CONFIG, model_type="gemma3", text_config={}, vision_config={"num_hidden_layers": side})
    (found,) = pair.find("configuration")
    assert (found.field, found.severity) == ("vision_config.num_hidden_layers", "beyond_inputs")
    assert "inputs other than text" in found.meaning
