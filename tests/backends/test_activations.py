"""Activation quantization of whole models: which layers, which ranges, in which situations."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness import plugins
from harness.backends import Backend, Compressed
from harness.backends.activations import Activations
from harness.backends.llm_int8 import LLMInt8
from harness.backends.round_to_nearest import RoundToNearest
from harness.concluding.pair import hash_data
from harness.data.documents import read_documents
from harness.errors import BackendError, PlanError
from harness.measures.memory import Memory
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.modules.activations import RANGE
from harness.plan import make_plan
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.pocket import MODEL_DIR
from harness.records import ModelSpec
from harness.rules.at_most import AtMost
from harness.running.pairs import describe_data
from harness.running.variant import make_variant
from harness.system.environment import describe_environment
from tests.helpers.number_formats import INT8_INPUTS
from tests.helpers.tiny_models import save, tiny_gpt2, tiny_llama, tiny_tokenizer

MIDDLE = "model.layers.1.mlp.down_proj"
CALIBRATION = [torch.arange(1, 30), torch.arange(40, 90, 2)]


def compress(model: PreTrainedModel, calibration: Sequence[Tensor] = (), **fields: Any) -> Compressed:
    return Activations(**fields).compress(model, tiny_tokenizer(), calibration)


def inputs_of(model: PreTrainedModel, ids: Tensor, last: bool) -> dict[str, Tensor]:
    """The input of every linear layer in a forward pass: as it comes in, or as it is multiplied."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def keep(_module: nn.Module, arguments: tuple[Tensor], name: str = name) -> None:
                seen[name] = arguments[0].detach()

            handles.append(module.register_forward_pre_hook(keep, prepend=not last))
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return seen


def test_every_layer_but_the_head_multiplies_values_of_the_grid() -> None:
    model, ids = tiny_llama(), torch.arange(40).reshape(2, 20)
    done = compress(model, bits=8)
    before, after = inputs_of(model, ids, last=False), inputs_of(model, ids, last=True)
    assert done.activations == dict.fromkeys(before.keys() - {"lm_head"}, INT8_INPUTS)
    for name, x in before.items():
        if name == "lm_head":
            assert torch.equal(after[name], x)
            continue
        step = x.abs().amax(-1, keepdim=True) / 127
        torch.testing.assert_close(after[name], (x / step).round() * step)
        assert not torch.equal(after[name], x)
    attention = [after[f"model.layers.0.self_attn.{part}_proj"] for part in "qkv"]
    assert torch.equal(attention[0], attention[1])
    assert torch.equal(attention[0], attention[2])


def test_the_weights_stay_as_they_are() -> None:
    model, original = tiny_llama(), tiny_llama()
    compress(model, bits=4)
    expected = original.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fields", [{"bits": 8}, {"bits": 6, "symmetric": False}, {"format": "mxfp8_e4m3"}])
def test_decoding_rounds_as_the_prefill_does(fields: dict[str, Any]) -> None:
    model, original = tiny_llama(), tiny_llama()
    compress(model, **fields)
    ids, cache, steps = torch.arange(3, 15)[None], None, []
    with torch.no_grad():
        whole = model(ids).logits
        for position in range(ids.shape[1]):
            output = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
        error = (original(ids).logits - whole).norm()
    # Values close to the middle of two codes may fall to either side; without rounding all of the error is left.
    assert (torch.cat(steps, dim=1) - whole).norm() < 0.4 * error


@pytest.mark.parametrize("symmetric", [True, False])
def test_static_ranges_are_those_of_all_calibration_documents(symmetric: bool) -> None:
    model, original = tiny_llama(), tiny_llama()
    step = {"bits": 8, "symmetric": symmetric, "granularity": "tensor", "dynamic": False}
    done = compress(model, CALIBRATION, **step)
    seen = [inputs_of(original, ids[None], last=False)[MIDDLE] for ids in CALIBRATION]
    low, high = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
    assert model.get_submodule(MIDDLE).get_buffer(RANGE).tolist() == pytest.approx([low, high], rel=1e-5)
    words = f"{'' if symmetric else 'asymmetric '}int8 per tensor, static (min_max)"
    assert str(done.activations[MIDDLE]) == words
    layer, weight, x = model.get_submodule(MIDDLE), original.get_parameter(f"{MIDDLE}.weight"), 3 * seen[0]
    scale = max(-low, high) / 127 if symmetric else (high - low) / 255
    zero, first, last = (0, -127, 127) if symmetric else (round(-low / scale), 0, 255)
    codes = ((x / scale).round() + zero).clamp(first, last)
    torch.testing.assert_close(layer(x), functional.linear((codes - zero) * scale, weight), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_other_static_ranges_are_narrower(method: str) -> None:
    documents = [(torch.arange(60) * step) % 96 for step in (1, 5, 7, 11)]
    static = {"bits": 4, "granularity": "tensor", "dynamic": False, "only": (MIDDLE,)}
    widths = {}
    for name in ("min_max", method):
        model = tiny_llama()
        fields = {"range": name} | ({"percentile": 95.0} if name == "percentile" else {})
        done = compress(model, documents, **static, **fields)
        low, high = model.get_submodule(MIDDLE).get_buffer(RANGE).tolist()
        widths[name] = max(-low, high)
    assert 0.02 < widths[method] / widths["min_max"] < 0.95
    assert (
        str(done.activations[MIDDLE]) == f"int4 per tensor, static ({method}{' 95' if method == 'percentile' else ''})"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bits": 8, "granularity": "tensor"}, "int8 per tensor, dynamic"),
        ({"format": "fp8_e5m2"}, "fp8_e5m2 per token, dynamic"),
        ({"format": "mxfp4"}, "mxfp4 in groups of 32, dynamic"),
        ({"format": "nvfp4"}, "nvfp4 in groups of 16, dynamic"),
    ],
)
def test_the_description_names_format_unit_and_range(fields: dict[str, Any], words: str) -> None:
    model, original = tiny_gpt2(), tiny_gpt2()
    assert {str(each) for each in compress(model, **fields).activations.values()} == {words}
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits, expected = model(ids).logits, original(ids).logits
    assert 0 < (logits - expected).norm() / expected.norm() < 0.3


def test_only_and_skip_choose_layers() -> None:
    done = compress(tiny_llama(), bits=8, only=("*.mlp.*", "lm_head"), skip=("*.0.*",))
    assert set(done.activations) == {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")} | {"lm_head"}


def test_inputs_that_are_not_finite_have_no_static_range() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3] = float("inf")
    with pytest.raises(BackendError, match=f"activations: the input of {MIDDLE}: .*NaN or infinity"):
        compress(model, CALIBRATION, bits=8, granularity="tensor", dynamic=False)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bits": 8, "format": "fp8_e4m3"},
        {"format": "fp8_e4m3", "symmetric": False},
        {"format": "nf4"},
        {"format": "mxfp4", "granularity": "tensor"},
        {"format": "nvfp4", "dynamic": False},
        {"bits": 8, "granularity": "channel"},
        {"bits": 8, "dynamic": False},
        {"bits": 8, "granularity": "tensor", "range": "mse"},
        {"bits": 8, "granularity": "tensor", "dynamic": False, "range": "mse", "percentile": 99.0},
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Activations(**fields)


def test_settings_survive_a_round_trip() -> None:
    static = Activations(bits=8, granularity="tensor", dynamic=False, range="percentile", percentile=99.0)
    for step in (Activations(bits=8), Activations(format="mxfp4"), static):
        assert Activations.model_validate_json(json.dumps(step.settings())) == step
    assert plugins.load(Backend, "activations") is Activations


# --- in a run ---------------------------------------------------------------------------------------------------


def test_only_static_ranges_need_calibration(tmp_path: Path) -> None:
    def problems(step: dict[str, Any]) -> str:
        file = tmp_path / "variant.yaml"
        content = {"name": "v", "reference": {"model": "pocket"}, "variant": {"compress": [step]}}
        file.write_text(yaml.safe_dump(content | {"suites": ["smoke"], "gates": ["ship"]}))
        try:
            make_plan(file)
        except PlanError as error:
            return str(error)
        return ""

    step = {"backend": "activations", "bits": 8, "granularity": "tensor"}
    assert "activations, but no calibration" not in problems(step)
    assert "activations, but no calibration" in problems(step | {"dynamic": False})


def plan_of(folder: Path, *steps: Backend) -> Plan:
    rule = AtMost(metric="memory.weight_bytes", limit=1.0, why="any")
    return Plan(
        name="tiny",
        source="variant.yaml",
        reference=ModelSpec(model=str(folder)),
        variant=VariantSpec(compress=steps),
        suites=(SuiteSpec(name="s", source="s.yaml", measures=(Memory(),)),),
        gates=(GateSpec(name="g", source="g.yaml", rules=(RuleSpec(rule=rule, where="g.yaml:1"),)),),
    )


def test_the_identity_says_what_was_done_and_tables_are_never_mixed_up(tmp_path: Path) -> None:
    reference = load(ModelSpec(model=str(save(tiny_llama(), tmp_path))), "reference")
    static: dict[str, Any] = {"bits": 8, "granularity": "tensor", "dynamic": False}
    steps: list[list[Backend]] = [
        [],
        [Activations(bits=8)],
        [RoundToNearest(bits=8, granularity="channel"), Activations(bits=8)],
        [Activations(**static)],
        [Activations(**static, range="mse")],
        [LLMInt8(threshold=2.0)],
        [LLMInt8(threshold=2.0000001)],
    ]

    def variant(some: list[Backend]) -> LoadedModel:
        return make_variant(plan_of(tmp_path, *some), reference, CALIBRATION)

    made = [variant(some) for some in steps]
    module = next(module for module in made[2].identity.modules if module.module == MIDDLE)
    assert (module.format.name, str(module.activations)) == ("int8", "int8 per token, dynamic")
    assert (module.kernel, module.backend) == ("simulated", "round_to_nearest")
    environment = describe_environment()
    keys = [
        hash_data(describe_data(plan_of(tmp_path, *some), reference.identity, loaded.identity, environment, {}))
        for some, loaded in zip(steps, made, strict=True)
    ]
    assert len(set(keys)) == len(keys)
    assert [reference.identity.same_as(loaded.identity) for loaded in made] == [True] + 6 * [False]
    plain, static_bytes = made[0].identity.modules, made[3].identity.modules
    assert [m.stored_bytes for m in static_bytes] == [m.stored_bytes for m in plain]
    assert RANGE not in dict(reference.model.named_buffers())
    assert not any(module._forward_pre_hooks for module in reference.model.modules())


@pytest.mark.parametrize("second", [Activations(bits=4), LLMInt8()])
def test_activations_are_quantized_once(tmp_path: Path, second: Backend) -> None:
    reference = load(ModelSpec(model=str(save(tiny_llama(), tmp_path))), "reference")
    with pytest.raises(BackendError, match="quantized by"):
        make_variant(plan_of(tmp_path, Activations(bits=8), second), reference, ())


def test_planted_outliers_need_a_scale_for_every_token() -> None:
    """The norms of the embedded model put a few channels far above the others."""
    reference = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    eight = RoundToNearest(bits=8, granularity="channel")
    steps: dict[str, list[Backend]] = {
        "weights": [eight],
        "token": [eight, Activations(bits=8, granularity="token")],
        "tensor": [eight, Activations(bits=8, granularity="tensor")],
    }
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    texts = [document.text for document in read_documents("pocket-heldout", 4, "text", "\n\n", 0)]
    documents = [torch.tensor([tokenizer(text).input_ids]) for text in texts]
    kl = dict.fromkeys(steps, 0.0)
    for name, some in steps.items():
        model = copy.deepcopy(reference)
        for step in some:
            step.compress(model, tokenizer, ())
        with torch.no_grad():
            for ids in documents:
                expected, found = (side(ids).logits[0].double().log_softmax(-1) for side in (reference, model))
                kl[name] += (expected.exp() * (expected - found)).sum().item()
    assert kl["token"] > 3 * kl["weights"]
    assert kl["tensor"] > 5 * kl["token"]


class Boaster(Backend):
    """Says that it rounds inputs, and does not."""

    def compress(self, model: Any, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
        return Compressed(model, activations={MIDDLE: INT8_INPUTS})


class Hider(Backend):
    """Rounds inputs, and does not say so."""

    def compress(self, model: Any, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
        return Compressed(Activations(bits=8).compress(model, tokenizer, calibration).model)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Boaster(), f"{MIDDLE}: input format declared int8 per token, dynamic, found no rounding"),
        (Hider(), "input format declared no rounding, found int8"),
    ],
)
def test_what_is_stated_of_inputs_must_be_done(step: Backend, text: str, tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "tiny")
    reference = load(ModelSpec(model=str(folder)), "reference")
    with pytest.raises(BackendError, match=text):
        make_variant(plan_of(folder, step), reference, ())
