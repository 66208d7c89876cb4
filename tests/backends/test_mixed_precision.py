"""Mixed precision on whole models: what is measured, what is chosen, and that the recipe repeats it."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness import plugins
from harness.backends import Backend, Compressed
from harness.backends.mixed_precision import MixedPrecision
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError
from harness.plan import make_plan
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
DOCUMENTS = [torch.tensor([0, 5, 9, 2, 40, 7]), torch.tensor([0, 90, 90, 12, 8, 77, 31, 6, 1])]
SIX = ("model.layers.0.mlp.*", "model.layers.1.mlp.*")


def compress(model: PreTrainedModel, **fields: Any) -> Compressed:
    return MixedPrecision(**fields).compress(model.requires_grad_(False), tiny_tokenizer(), DOCUMENTS)


def note(done: Compressed, topic: str) -> str:
    (found,) = [note.text for note in done.notes if note.topic == topic]
    return found


def divergence(model: PreTrainedModel, step: Any, documents: list[Tensor]) -> float:
    """KL in nats a token from ``model`` to what a step makes of it."""
    variant = copy.deepcopy(model)
    step.compress(variant, tiny_tokenizer(), documents)
    total = tokens = 0.0
    with torch.inference_mode():
        for ids in documents:
            p, q = (each(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1) for each in (model, variant))
            total += (p.exp() * (p - q)).sum().item()
            tokens += len(p)
    return total / tokens


def stored(done: Compressed, model: PreTrainedModel) -> float:
    """Stored bits a weight over all modules that were quantized."""
    weights = [model.get_parameter(f"{module.module}.weight").numel() for module in done.modules]
    bits = [module.bits_per_weight for module in done.modules]
    return float(np.dot(weights, bits) / sum(weights))


@pytest.mark.parametrize(
    "settings", [{}, {"granularity": "channel", "symmetric": False}, {"group_size": 16, "double_quantize": True}]
)
def test_the_choice_is_the_best_of_all_by_divergences_measured_one_by_one(settings: dict[str, Any]) -> None:
    model = tiny_llama().requires_grad_(False)
    chosen = [name for name, _ in model.named_modules() if ".mlp." in name and "proj" in name]
    bits, target = (2, 4, 5), 4.9
    done = compress(copy.deepcopy(model), bits=bits, target_bits_per_weight=target, only=SIX, **settings)
    costs = np.empty((6, 3))
    sizes = np.empty((6, 3))
    for row, name in enumerate(chosen):
        for column, width in enumerate(bits):
            step = RoundToNearest(bits=width, only=(name,), **settings)
            costs[row, column] = divergence(model, step, DOCUMENTS)
            variant = step.compress(copy.deepcopy(model), tiny_tokenizer(), ()).modules[0]
            sizes[row, column] = variant.bits_per_weight * 64 * 112
    everything = [
        (sum(costs[row, o] for row, o in enumerate(options)), options)
        for options in product(range(3), repeat=6)
        if sum(sizes[row, o] for row, o in enumerate(options)) <= target * 6 * 64 * 112
    ]
    best = min(everything)[1]
    assert [module.format.name for module in done.modules] == [f"int{bits[option]}" for option in best]
    assert len({module.format.name for module in done.modules}) > 1
    assert {module.backend for module in done.modules} == {"mixed_precision"}
    assert stored(done, done.model) <= target
    spent = float(note(done, "allocation").split("add up to ")[1].split()[0])
    assert spent == pytest.approx(min(everything)[0], rel=1e-3)


def recipe_plan(text: str, folder: Path) -> RoundToNearest:
    """The step of a recipe, read as a user's file is."""
    (folder / "suite.yaml").write_text(
        "description: any\ndocuments: {data: pocket-heldout, max: 1, context: 16}\nmeasures: [logits]\n"
    )
    (folder / "gate.yaml").write_text(
        "description: any\nrules: [{rule: at_most, metric: logits.max_abs_diff, limit: 1.0, why: any}]\n"
    )
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    (folder / "variant.yaml").write_text(
        f"name: again\nreference: {{model: pocket}}\nvariant:\n  compress:\n{indented}"
        "suites: [./suite.yaml]\ngates: [./gate.yaml]\n"
    )
    (step,) = make_plan(folder / "variant.yaml").variant.compress
    assert isinstance(step, RoundToNearest)
    return step


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 16, "skip": ("lm_head", "*.0.*k_proj*", "*.0.*c_proj")},
        {"granularity": "channel", "symmetric": False, "skip": ()},
        {"full_range": True, "sensitivity": "output_error"},
    ],
)
def test_the_recipe_makes_the_same_weights_bit_for_bit(make: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    if "*.0.*k_proj*" in settings.get("skip", ()):
        unused = "*.0.*c_proj" if make is tiny_llama else "*.0.*k_proj*"
        settings = settings | {"skip": tuple(pattern for pattern in settings["skip"] if pattern != unused)}
    done = compress(make(), bits=(2, 3, 8), target_bits_per_weight=5.0, **settings)
    step = recipe_plan(note(done, "recipe"), tmp_path)
    again = step.compress(make(), tiny_tokenizer(), ())
    assert len({module.format.name for module in done.modules}) > 1
    assert [m.model_copy(update={"backend": "mixed_precision"}) for m in again.modules] == list(done.modules)
    for name, tensor in done.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_limit_to_the_loss_gives_the_smallest_size_that_keeps_to_it() -> None:
    model = tiny_llama().requires_grad_(False)
    bound = compress(copy.deepcopy(model), bits=(2, 4, 8), target_bits_per_weight=5.0)
    spent = float(note(bound, "allocation").split("add up to ")[1].split()[0])
    free = compress(copy.deepcopy(model), bits=(2, 4, 8), max_sensitivity=spent * 1.01)
    assert stored(free, free.model) <= stored(bound, bound.model)
    with pytest.raises(
        BackendError, match=r"no choice of bits .* within 2\.6 bits per weight the sens.* above the limit of 1e-09"
    ):
        compress(copy.deepcopy(model), bits=(2, 8), max_sensitivity=1e-9, target_bits_per_weight=2.6)


def test_one_number_of_bits_is_round_to_nearest() -> None:
    model, plain = tiny_llama(), tiny_llama()
    done = compress(model, bits=(4,), target_bits_per_weight=4.6)
    RoundToNearest(bits=4).compress(plain, tiny_tokenizer(), ())
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert yaml.safe_load(note(done, "recipe")) == [{"backend": "round_to_nearest", "bits": 4}]


def test_layers_that_share_a_weight_get_the_same_bits_and_are_counted_once() -> None:
    model = tiny_llama()
    first, second = (model.get_submodule(f"model.layers.{index}.mlp.gate_proj") for index in (0, 1))
    second.weight = first.weight
    done = compress(model, bits=(2, 8), target_bits_per_weight=5.0)
    assert second.weight is first.weight
    formats = {module.module: module.format for module in done.modules}
    assert formats["model.layers.0.mlp.gate_proj"] == formats["model.layers.1.mlp.gate_proj"]
    once = [m for m in done.modules if m.module != "model.layers.1.mlp.gate_proj"]
    assert stored(Compressed(model, tuple(once)), model) <= 5.0


def test_a_target_below_everything_says_what_is_possible() -> None:
    with pytest.raises(BackendError, match=r"bits \[3, 4\] the layers take at least 3\.515 bits per weight"):
        compress(tiny_llama(), bits=(3, 4), target_bits_per_weight=3.2)


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = float("inf")
    with pytest.raises(BackendError, match=r"mixed_precision: model\.layers\.1\.mlp\.up_proj: .*NaN or infinity"):
        compress(model, bits=(4, 8), target_bits_per_weight=8.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": (2, 4)},
        {"bits": (), "target_bits_per_weight": 4.0},
        {"bits": (4, 4), "target_bits_per_weight": 4.5},
        {"bits": (1, 4), "target_bits_per_weight": 4.5},
        {"bits": (2, 4), "target_bits_per_weight": 0.0},
        {"bits": (2, 4), "max_sensitivity": 0.0},
        {"bits": (2, 4), "target_bits_per_weight": 4.0, "granularity": "channel", "group_size": 32},
        {"bits": (2, 4), "target_bits_per_weight": 4.0, "symmetric": False, "full_range": True},
        {"bits": (2, 4), "target_bits_per_weight": 4.0, "percentile": 99.0},
        {"bits": (2, 4), "target_bits_per_weight": 4.0, "overrides": ()},
        {"bits": (2, 4), "target_bits_per_weight": 4.0, "format": "int"},
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MixedPrecision(**fields)


def test_it_is_found_by_its_name_and_its_settings_survive() -> None:
    assert plugins.load(Backend, "mixed_precision") is MixedPrecision
    step = MixedPrecision(bits=(2, 8), max_sensitivity=0.1)
    assert MixedPrecision.model_validate_json(json.dumps(step.settings())) == step


@pytest.mark.slow
def test_a_real_model_loses_less_than_with_the_same_bits_everywhere(shared_data: Path) -> None:
    folder = shared_data / "models/stories260K-hf"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    model.requires_grad_(False)
    lines = (shared_data / "corpora/tinystories_valid_A_297.jsonl").read_text().splitlines()
    stories = [torch.tensor(tokenizer(json.loads(line)["text"]).input_ids[:192]) for line in lines[100:120]]

    class Done:
        def __init__(self, variant: PreTrainedModel) -> None:
            self.variant = variant

        def compress(self, target: PreTrainedModel, *_: Any) -> None:
            target.load_state_dict(self.variant.state_dict())

    mixed, uniform = copy.deepcopy(model), copy.deepcopy(model)
    same = RoundToNearest(bits=4).compress(uniform, tokenizer, ())
    size = stored(same, uniform)
    step = MixedPrecision(bits=(2, 3, 4, 5, 6, 8), target_bits_per_weight=size + 1e-9)
    found = step.compress(mixed, tokenizer, stories[:4])
    assert stored(found, mixed) <= size + 1e-9
    assert divergence(model, Done(mixed), stories[4:]) < 0.95 * divergence(model, Done(uniform), stories[4:])
