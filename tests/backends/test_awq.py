"""AWQ on whole models."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness import plugins
from harness.backends import Backend, Compressed
from harness.backends.awq import Awq
from harness.backends.round_to_nearest import RoundToNearest
from harness.data.documents import read_documents
from harness.errors import BackendError
from harness.modules.linears import linears
from harness.pocket import MODEL_DIR
from harness.testing.models import random_documents
from tests.helpers.tiny_models import ready, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.helpers.zoo import make

DOCUMENTS = [torch.randint(0, 96, (length,), generator=torch.Generator().manual_seed(length)) for length in (20, 7, 33)]
BLOCK = "model.layers.0"
EMBEDDING = "model.embed_tokens.weight"


def outliers(model: PreTrainedModel) -> PreTrainedModel:
    """Gains that differ from channel to channel: the weights that large activations meet matter more."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data *= torch.exp(1.5 * torch.randn(len(parameter), generator=generator))
    return model


def compress(model: PreTrainedModel, documents: Sequence[Tensor] = DOCUMENTS, **fields: Any) -> Compressed:
    done = Awq(**fields).compress(model, tiny_tokenizer(), documents)
    assert done.model is model
    return done


def rounded(weight: Tensor, bits: int, group: int = 32) -> Tensor:
    """Symmetric rounding in groups of a row, written with Python loops."""
    result, largest = weight.detach().clone(), 2 ** (bits - 1) - 1
    for row in result:
        for start in range(0, len(row), group):
            piece = row[start : start + group]
            scale = piece.abs().max() / largest
            piece.copy_((piece / scale).round() * scale)
    return result


@torch.no_grad()
def outputs(model: PreTrainedModel, name: str) -> list[Tensor]:
    """What a module of the model gives for every document."""
    found: list[Tensor] = []

    def note(_module: Any, _arguments: Any, output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    handle = model.get_submodule(name).register_forward_hook(note)
    for ids in DOCUMENTS:
        model(ids[None])
    handle.remove()
    return found


def error(reference: PreTrainedModel, model: PreTrainedModel, name: str) -> float:
    pairs = zip(outputs(reference, name), outputs(model, name), strict=True)
    return sum((old - new).square().sum().item() for old, new in pairs)


@torch.no_grad()
def test_the_first_scale_is_that_of_a_plain_loop_over_whole_attentions() -> None:
    """Queries, keys and values of the first block, by the definition: α minimises the error of the attention."""
    original, readers = outliers(tiny_llama()), [f"{BLOCK}.self_attn.{name}_proj" for name in "qkv"]
    inputs: list[Tensor] = []
    norm = original.get_submodule(f"{BLOCK}.input_layernorm")
    handle = norm.register_forward_hook(lambda _module, _arguments, output: inputs.append(output[0]))
    wanted = outputs(original, f"{BLOCK}.self_attn")
    handle.remove()
    mean = torch.cat(inputs).abs().mean(dim=0)
    errors = {}
    for step in range(21):
        powers = mean ** (step / 20)
        scale = powers / (powers.max() * powers.min()).sqrt()
        tried = copy.deepcopy(original)
        for name in readers:
            weight = tried.get_parameter(f"{name}.weight")
            weight.copy_(rounded(weight * scale, 3) / scale)
        pairs = zip(wanted, outputs(tried, f"{BLOCK}.self_attn"), strict=True)
        errors[step] = sum((old - new).square().sum().item() for old, new in pairs), scale
    best = min(errors, key=lambda step: errors[step][0])
    assert 0 < best < 20
    scale = errors[best][1]
    model = outliers(tiny_llama())
    compress(model, bits=3, clip=False)
    gain = original.get_parameter(f"{BLOCK}.input_layernorm.weight")
    assert torch.allclose(model.get_parameter(f"{BLOCK}.input_layernorm.weight"), gain / scale, rtol=1e-4)
    for name in readers[:2]:  # The rows of values have taken up the scale of the output projection as well.
        found = model.get_parameter(f"{name}.weight")
        assert torch.allclose(found, rounded(original.get_parameter(f"{name}.weight") * scale, 3), atol=1e-5), name


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("fields", [{"bits": 3}, {"bits": 4, "symmetric": False, "granularity": "channel"}])
def test_it_beats_rounding_to_nearest_where_activations_have_outliers(make: Any, fields: dict[str, Any]) -> None:
    original = outliers(make())
    nearest, scaled = copy.deepcopy(original), copy.deepcopy(original)
    RoundToNearest(**fields).compress(nearest, tiny_tokenizer(), ())
    compress(scaled, **fields)
    stack = original.get_submodule(BLOCK if make is tiny_llama else "transformer.h.0")
    name = next(name for name, module in original.named_modules() if module is stack)
    assert error(original, scaled, name) < 0.9 * error(original, nearest, name)


def test_without_scaling_and_clipping_it_is_rounding_to_nearest() -> None:
    nearest, model = outliers(tiny_llama()), outliers(tiny_llama())
    RoundToNearest(bits=4).compress(nearest, tiny_tokenizer(), ())
    compress(model, bits=4, scale_grid=0, clip=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), nearest.parameters(), strict=True))


def test_clipping_improves_every_output_and_leaves_queries_and_keys() -> None:
    original = outliers(tiny_llama())
    nearest, clipped = copy.deepcopy(original), copy.deepcopy(original)
    RoundToNearest(bits=3).compress(nearest, tiny_tokenizer(), ())
    done = compress(clipped, bits=3, scale_grid=0)
    formats = {module.module: module for module in done.modules}
    for name in (f"{BLOCK}.self_attn.q_proj", f"{BLOCK}.self_attn.k_proj"):
        assert torch.equal(clipped.get_parameter(f"{name}.weight"), nearest.get_parameter(f"{name}.weight"))
        assert formats[name].format.ranges == "min_max"
    alone = copy.deepcopy(original)
    for name in (f"{BLOCK}.self_attn.v_proj",):
        assert formats[name].format.ranges == "output_error"
        alone.get_submodule(name).weight.data = nearest.get_submodule(name).weight
        plain = error(original, alone, name)
        alone.get_submodule(name).weight.data = clipped.get_submodule(name).weight
        assert error(original, alone, name) < 0.95 * plain
    everything = compress(copy.deepcopy(original), bits=3, scale_grid=0, no_clip=())
    assert {module.format.ranges for module in everything.modules} == {"output_error"}


def test_weights_are_on_the_grid_and_described() -> None:
    model = outliers(tiny_llama())
    modules = compress(model, bits=3).modules
    assert len(modules) == 14
    for described in modules:
        weight = model.get_parameter(f"{described.module}.weight")
        assert max(len(row.unique()) for row in weight[:, :32]) <= 7, described.module
        assert (described.format.name, described.format.granularity, described.format.group_size) == (
            "int3",
            "group",
            32,
        )
        assert (described.kernel, described.backend) == ("simulated", "awq")


def test_it_says_what_was_scaled() -> None:
    (note,) = compress(outliers(tiny_llama()), bits=3, clip=False).notes
    assert note.text.startswith("awq: 14 of 14 linear layers in 8 groups could be scaled; ")
    (note,) = compress(outliers(tiny_gpt2()), bits=3, clip=False).notes
    assert note.text.startswith("awq: 6 of 8 linear layers in 6 groups could be scaled; ")  # A GELU is in between.


def test_layers_that_are_skipped_are_scaled_with_the_others_but_not_rounded() -> None:
    original = outliers(tiny_llama())
    model = copy.deepcopy(original)
    formats = compress(model, bits=3, only=("*.gate_proj",)).modules
    assert [module.module for module in formats] == [f"model.layers.{index}.mlp.gate_proj" for index in (0, 1)]
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        assert torch.equal(
            model.get_parameter(f"{BLOCK}.{name}.weight"), original.get_parameter(f"{BLOCK}.{name}.weight")
        )
    up, before = (each.get_parameter(f"{BLOCK}.mlp.up_proj.weight") for each in (model, original))
    assert not torch.equal(up, before)
    assert torch.allclose(up / before, (up / before)[:1].expand_as(up), rtol=1e-4)


def test_two_runs_give_the_same_bytes() -> None:
    first, second = outliers(tiny_llama()), outliers(tiny_llama())
    torch.manual_seed(1)
    compress(first, bits=3)
    torch.manual_seed(2)
    compress(second, bits=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_every_block_is_judged_on_what_the_unquantized_ones_before_it_give() -> None:
    """As in the authors' code: what happens to the first block has no influence on the second."""
    everything, second = outliers(tiny_llama()), outliers(tiny_llama())
    compress(everything, bits=3)
    compress(second, bits=3, only=("model.layers.1.*",))
    name = "model.layers.1.mlp.down_proj"
    assert torch.allclose(everything.get_parameter(f"{name}.weight"), second.get_parameter(f"{name}.weight"), atol=1e-5)


def test_a_head_that_is_not_skipped_is_clipped_and_untied() -> None:
    model = outliers(tiny_llama())
    embedding = model.get_parameter(EMBEDDING).detach().clone()
    formats = {module.module: module for module in compress(model, bits=3, skip=()).modules}
    assert formats["lm_head"].format.ranges == "output_error"
    assert torch.equal(model.get_parameter(EMBEDDING), embedding)
    assert not model.config.tie_word_embeddings
    assert len(model.lm_head.weight[0, :32].unique()) <= 7


@pytest.mark.parametrize("fields", [{"bits": 3, "duo_scaling": True}, {"format": "nvfp4"}, {"format": "mxfp4"}])
def test_other_formats_and_scales_are_searched_too(fields: dict[str, Any]) -> None:
    original = outliers(tiny_llama())
    nearest, model = copy.deepcopy(original), copy.deepcopy(original)
    plain = {key: value for key, value in fields.items() if key != "duo_scaling"}
    RoundToNearest(**plain).compress(nearest, tiny_tokenizer(), ())
    compress(model, **fields)
    assert error(original, model, "model.norm") < error(original, nearest, "model.norm")


def test_half_precision_keeps_its_dtype() -> None:
    model = outliers(tiny_llama()).to(torch.bfloat16)  # type: ignore[arg-type]
    compress(model, bits=4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = tiny_llama()
    model.get_parameter(f"{BLOCK}.mlp.up_proj.weight").data[0, 0] = float("nan")
    with pytest.raises(BackendError, match=rf"awq: {BLOCK}.mlp.up_proj: .*NaN or infinity"):
        compress(model, bits=4)


def test_a_clip_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(BackendError, match=r"\['\*query\*'\] match no linear layer"):
        compress(tiny_llama(), bits=4, no_clip=("*query*",))


@pytest.mark.parametrize(
    "fields", [{}, {"bits": 4, "scale_grid": -1}, {"bits": 4, "clip_grid": 0}, {"bits": 4, "grid": 20}]
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Awq(**fields)


def test_it_is_found_by_its_name() -> None:
    assert plugins.load(Backend, "awq") is Awq
    step = Awq(bits=3, duo_scaling=True)
    assert Awq.model_validate_json(json.dumps(step.settings())) == step


# --- real models --------------------------------------------------------------------------------------------


@torch.no_grad()
def divergence(reference: PreTrainedModel, model: PreTrainedModel, documents: Sequence[Tensor]) -> float:
    total, tokens = 0.0, 0
    for ids in documents:
        wanted = functional.log_softmax(reference(ids[None]).logits[0].double(), dim=-1)
        found = functional.log_softmax(model(ids[None]).logits[0].double(), dim=-1)
        total += (wanted.exp() * (wanted - found)).sum().item()
        tokens += len(ids)
    return total / tokens


def share_of_nearest(folder: Path, bits: int, calibration: Sequence[str], held_out: Sequence[str]) -> float:
    """KL of AWQ on texts it has not seen, in parts of that of rounding to nearest."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    def encoded(texts: Sequence[str]) -> list[Tensor]:
        pieces = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        return [torch.tensor([tokenizer.bos_token_id, *ids][:160]) for ids in pieces]

    nearest, scaled = copy.deepcopy(model), copy.deepcopy(model)
    RoundToNearest(bits=bits).compress(nearest, tokenizer, ())
    Awq(bits=bits).compress(scaled, tokenizer, encoded(calibration))
    documents = encoded(held_out)
    found = divergence(model, scaled, documents) / divergence(model, nearest, documents)
    assert math.isfinite(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "share"), [(4, 0.5), (3, 0.85)])
def test_pocket_is_better_than_rounded_to_nearest(bits: int, share: float) -> None:
    calibration = [document.text for document in read_documents("pocket-calibration", 16)]
    held_out = [document.text for document in read_documents("pocket-heldout", 24)]
    assert share_of_nearest(MODEL_DIR, bits, calibration, held_out) < share


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "share"), [(4, 0.85), (3, 0.75)])
def test_stories260k_is_better_than_rounded_to_nearest(bits: int, share: float, shared_data: Path) -> None:
    lines = (shared_data / "corpora/tinystories_valid_A_297.jsonl").read_text().splitlines()
    stories = [json.loads(line)["text"] for line in lines]
    folder = shared_data / "models/stories260K-hf"
    assert share_of_nearest(folder, bits, stories[200:216], stories[:24]) < share


def test_layers_without_calibration_are_named_in_the_order_of_the_model() -> None:
    model = ready(partial(make, "llava"))
    expected = [name for name, _ in linears(model) if name.startswith(("model.vision", "model.multi"))]
    done = Awq(bits=4, scale_grid=0, no_clip=()).compress(model, tiny_tokenizer(), random_documents(2, 12, seed=1))
    (note,) = [note.text for note in done.notes if "received no calibration token" in note.text]
    assert note.endswith(": " + ", ".join(expected))
