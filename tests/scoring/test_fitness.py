"""Which models are declared to need one sequence per row, and why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.models.language_model import TransformersModel
from harness.numerics.named_formats import named_formats
from harness.records import NumberFormat
from harness.scoring.fitness import explain_dependence, find_window
from harness.testing.models import tiny_llama
from tests.helpers.zoo import make_model

INT8 = named_formats()["int"]


def explain(model: Any, inputs: NumberFormat | None = None, cache: object = None) -> str:
    module = SimpleNamespace(module="model.layers.0.mlp.up_proj", activations=inputs)
    identity = SimpleNamespace(cache=cache, modules=(SimpleNamespace(module="embed", activations=None), module))
    loaded: Any = SimpleNamespace(language_model=TransformersModel(model), identity=identity)
    return explain_dependence(loaded)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (None, ""),
        (INT8.record(8, granularity="token", dynamic=True), ""),
        (INT8.record(8, granularity="tensor", dynamic=False), ""),
        (named_formats()["mxfp4"].record(dynamic=True), ""),
        (INT8.record(8, granularity="tensor", dynamic=True), "with a scale that all tokens of a call share"),
        (named_formats()["nvfp4"].record(dynamic=True), "with a scale that all tokens of a call share"),
        (INT8.record(8, granularity="token", dynamic=True, outliers=6.0), "columns that are chosen over all tokens"),
    ],
)
def test_scales_that_a_call_shares_are_found(inputs: NumberFormat | None, said: str) -> None:
    reason = explain(tiny_llama(), inputs)
    assert (said in reason) if said else reason == ""
    assert not said or "model.layers.0.mlp.up_proj" in reason


def test_a_simulated_cache_and_other_attention_are_found() -> None:
    assert "simulated KV cache" in explain(tiny_llama(), cache="int8")
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in explain(model)


@pytest.mark.parametrize(("kind", "said"), [("mamba", "recurrent"), ("lfm2", "conv"), ("bloom", "place in the row")])
def test_architectures_that_read_more_than_a_mask_shows_are_found(kind: str, said: str) -> None:
    assert said in explain(make_model(kind))


@pytest.mark.parametrize(("kind", "window"), [("llama", None), ("gemma2", 8), ("llama4_text", 8), ("qwen2_moe", None)])
def test_windows_are_found(kind: str, window: int | None) -> None:
    model: Any = make_model(kind)
    assert find_window(model) == window


def test_an_engine_without_modules_is_found() -> None:
    engine: Any = SimpleNamespace(language_model=SimpleNamespace(modules=None), identity=None)
    assert "engine" in explain_dependence(engine)
