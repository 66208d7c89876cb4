"""llm-compressor: beside the library called by hand, and beside our own simulation of the same recipe."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from harness.backends.gptq import Gptq
from harness.backends.llmcompressor import LlmCompressor, _disable_pinning, _warnings
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError
from harness.models.identity import weights_sha256
from harness.models.loading import load
from harness.modules.linears import linears
from harness.records import ModelSpec
from harness.testing import trials
from harness.testing.models import random_documents, tiny_tokenizer
from tests.helpers.number_formats import INT8_INPUTS
from tests.helpers.tiny_models import save

pytest.importorskip("llmcompressor")
torch.set_num_threads(1)
DOCUMENTS = random_documents(8, 24, seed=1)
W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}


def reference(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return trials.make_model("llama", {}, dtype, "cpu")


def ours(**settings: Any) -> trials.Trial:
    return trials.compress(LlmCompressor(**settings), reference())


def per_text(trial: trials.Trial) -> torch.Tensor:
    """Mean KL of each text [B]."""
    reference, found = (trials.logits(model).log_softmax(-1) for model in (trial.reference, trial.model))
    return (reference.exp() * (reference - found)).sum(-1).mean(-1)


def by_hand(tmp_path: Path, recipe: Any) -> PreTrainedModel:
    """The library as its own examples call it; it rounds the weights it kept whenever they are used."""
    from datasets import Dataset
    from llmcompressor import oneshot

    model: Any = reference()
    model.config.save_pretrained(tmp_path)
    model.config._name_or_path = str(tmp_path)
    ids = [each.tolist() for each in DOCUMENTS]
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids]})
    with _disable_pinning():
        oneshot(
            model=model,
            tokenizer=tiny_tokenizer(),
            recipe=recipe,
            dataset=data,
            num_calibration_samples=len(ids),
            shuffle_calibration_samples=False,
        )
    return trials._freeze(model)


def modifiers(which: str) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    groups = {"g": {"targets": ["Linear"], "weights": W4}}
    head = {"ignore": ["lm_head"]}
    cache = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False, "symmetric": True}
    made: dict[str, Callable[[], Any]] = {
        "round": lambda: QuantizationModifier(config_groups=groups, **head),
        "gptq": lambda: GPTQModifier(config_groups=groups, **head),
        "awq": lambda: [AWQModifier(), QuantizationModifier(config_groups=groups, **head)],
        "smooth": lambda: [SmoothQuantModifier(smoothing_strength=0.6), QuantizationModifier(scheme="W8A8", **head)],
        "fp8": lambda: QuantizationModifier(scheme="FP8", targets=["Linear"], **head),
        "cache": lambda: QuantizationModifier(kv_cache_scheme=cache, **head),
    }
    return made[which]()


@pytest.mark.parametrize(
    ("which", "settings"),
    [
        ("round", {"bits": 4, "group_size": 16}),
        ("round", {"scheme": "W4A16", "group_size": 16}),
        ("gptq", {"bits": 4, "group_size": 16, "method": "gptq"}),
        ("awq", {"bits": 4, "group_size": 16, "method": "awq"}),
        ("smooth", {"scheme": "W8A8", "smoothing": 0.6}),
        ("fp8", {"scheme": "FP8"}),
        ("cache", {"kv_cache": "int8"}),
    ],
)
def test_it_is_what_the_library_makes_by_hand(tmp_path: Path, which: str, settings: dict[str, Any]) -> None:
    trial = ours(**settings)
    wanted = trials.logits(by_hand(tmp_path, modifiers(which)))
    assert trials.logits(trial.model).equal(wanted)
    assert not wanted.equal(trials.logits(trial.reference))


def test_a_recipe_file_is_given_to_the_library_as_it_is(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        """
quant_stage:
  quant_modifiers:
    SmoothQuantModifier: {smoothing_strength: 0.6}
    GPTQModifier:
      ignore: [lm_head, "re:.*down_proj"]
      config_groups:
        one:
          targets: ["re:.*mlp.*"]
          weights: {num_bits: 4, type: int, symmetric: false, strategy: group, group_size: 16}
        other:
          targets: ["re:.*self_attn.*_proj"]
          weights: {num_bits: 8, type: int, symmetric: true, strategy: channel}
          input_activations: {num_bits: 8, type: int, symmetric: true, strategy: token, dynamic: true}
"""
    )
    done = ours(recipe=str(recipe)).done
    formats = {each.module: (each.format.name, each.format.granularity, each.format.symmetric) for each in done.modules}
    assert formats["model.layers.1.mlp.up_proj"] == ("int4", "group", False)
    assert formats["model.layers.0.self_attn.k_proj"] == ("int8", "channel", True)
    assert len(formats) == 2 * 6
    assert set(done.activations) == {name for name in formats if "self_attn" in name}
    assert set(done.activations.values()) == {INT8_INPUTS}


@pytest.mark.parametrize(
    ("theirs", "same"),
    [
        ({"bits": 4, "group_size": 16}, {"bits": 4, "group_size": 16, "full_range": True}),
        ({"bits": 3, "symmetric": False}, {"bits": 3, "granularity": "channel", "symmetric": False}),
        ({"scheme": "FP8_DYNAMIC"}, {"format": "fp8_e4m3", "granularity": "channel"}),
    ],
)
def test_rounding_gives_the_codes_of_our_own(theirs: dict[str, Any], same: dict[str, Any]) -> None:
    mine, found = trials.compress(RoundToNearest(**same), reference()), ours(**theirs)
    weights = dict(linears(mine.model))
    for name, module in linears(found.model):
        apart = (module.weight - weights[name].weight).abs().max()
        assert apart <= 1e-6 * module.weight.abs().max(), name
    strip = {"backend", "stored_bytes", "bits_per_weight"}
    assert [m.model_dump(exclude=strip) for m in found.done.modules] == [
        m.model_dump(exclude=strip) for m in mine.done.modules
    ]


def test_gptq_costs_what_our_own_costs() -> None:
    found = ours(bits=3, group_size=16, method="gptq")
    settings: dict[str, Any] = {"bits": 3, "group_size": 16, "full_range": True, "act_order": True}
    mine = trials.compress(Gptq(static_groups=True, sequential="block", **settings), reference())
    plain = ours(bits=3, group_size=16)
    apart_B = per_text(found) - per_text(mine)
    error = float(apart_B.std()) / math.sqrt(len(apart_B))
    assert abs(float(apart_B.mean())) < 2 * error + 0.05 * trials.divergence(mine)
    assert trials.divergence(found) < trials.divergence(plain)


def test_what_it_ships_computes_the_same(tmp_path: Path) -> None:
    recipes: tuple[dict[str, Any], ...] = ({"bits": 4, "group_size": 16, "method": "gptq"}, {"scheme": "W8A8"})
    for index, settings in enumerate(recipes):
        step, folder = LlmCompressor(**settings), tmp_path / str(index)
        trial = trials.compress(step, reference())
        live = trials.logits(trial.model), weights_sha256(trial.model)
        step.save(trial.model, folder)
        tiny_tokenizer().save_pretrained(folder)
        assert (trials.logits(trial.model).equal(live[0]), weights_sha256(trial.model)) == (True, live[1])
        shipped = load(ModelSpec(model=str(folder)), "shipped")
        assert trials.deviation(trials.logits(shipped.model), live[0]) < 1e-5
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        plain = save(reference(), tmp_path / f"plain{index}")
        assert weights < 0.75 * sum(path.stat().st_size for path in plain.glob("*.safetensors"))


def test_nothing_that_it_needed_stays() -> None:
    from llmcompressor.pipelines.cache import IntermediatesCache

    before = vars(IntermediatesCache)["_pin_intermediate"], dict(os.environ)
    trial = ours(bits=4, group_size=16, method="awq")
    assert (vars(IntermediatesCache)["_pin_intermediate"], dict(os.environ)) == before
    config: Any = trial.model.config
    assert config._name_or_path == trial.reference.config._name_or_path
    assert "save_pretrained" not in vars(trial.model)
    # Only weights are on a grid: layers are as quick as any.
    assert not any("forward" in vars(module) for _, module in linears(trial.model))


def test_what_the_library_warns_of_becomes_a_note() -> None:
    import llmcompressor  # noqa: F401 - sets its logger up
    from loguru import logger

    with _warnings() as found:
        for text in ("Hessian inversion failed for 3/14 modules", "Attempting to calibrate on CPU."):
            logger.patch(lambda record: record.update({"name": "llmcompressor.x"})).warning(text)
    assert found == ["Hessian inversion failed for 3/14 modules"]


def test_groups_that_do_not_fit_are_refused_with_the_layers() -> None:
    with pytest.raises(BackendError, match=r"llmcompressor: .*(?s:.*)model\.layers\.0\.mlp\.down_proj.*48"):
        ours(bits=4, group_size=48)


def test_schemes_are_those_of_the_library() -> None:
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    known = set(LlmCompressor.model_fields["scheme"].annotation.__args__[0].__args__)  # type: ignore[union-attr]
    assert known == PRESET_SCHEMES.keys() - {"UNQUANTIZED", "INT8"}
    for name in known:
        step, preset = LlmCompressor(scheme=name), PRESET_SCHEMES[name]
        inputs = preset.get("input_activations")
        assert ("activations" in step.puts_on_grid) == (inputs is not None), name
        assert step.calibrates == (inputs is not None and inputs.dynamic is not True), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scheme": "W8A8", "bits": 8},
        {"recipe": "recipe.yaml", "bits": 4},
        {"scheme": "FP8", "group_size": 16},
        {"scheme": "W4A16", "symmetric": False},
        {"kv_cache": "int8", "method": "gptq"},
        {"bits": 4, "damping": 0.1},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LlmCompressor(**settings)
