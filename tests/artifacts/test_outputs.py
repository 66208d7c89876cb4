"""What a module does is told from its outputs: any change of weight, bias or hook shows, and nothing else does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.artifacts.outputs import DIRECTIONS, MODULE, encode_text, model_outputs
from harness.testing.models import random_documents, randomize_gains
from tests.helpers.tiny_models import family, tiny_gpt2, tiny_llama, tiny_tokenizer

DOWN = "model.layers.1.mlp.down_proj"
NOWHERE: Any = lambda done, of: None  # noqa: E731 - progress that nobody watches


def taken(model: PreTrainedModel, documents: int = 1) -> dict[str, Tensor]:
    return model_outputs(model, random_documents(documents, 12, seed=1), NOWHERE)


def changed(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(left[name], right[name])}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return randomize_gains(tiny_llama(tied=False)).requires_grad_(False)


def test_logits_are_those_of_the_plain_forward_pass_and_threads_stay(model: PreTrainedModel) -> None:
    torch.set_num_threads(2)
    try:
        found = taken(model, documents=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    for number, ids in enumerate(random_documents(2, 12, seed=1)):
        torch.testing.assert_close(found[f"document/{number}"], model(ids[None]).logits[0])
    assert changed(found, taken(model, documents=2)) == set()


def test_a_linear_layer_answers_with_its_effective_weight_and_bias() -> None:
    model = randomize_gains(tiny_gpt2()).requires_grad_(False)
    layer: Any = model.get_submodule("transformer.h.0.mlp.c_fc")
    answer = taken(model)[f"{MODULE}transformer.h.0.mlp.c_fc"]
    assert answer.shape == (DIRECTIONS + 1, layer.bias.shape[0])
    torch.testing.assert_close(answer[-1], layer.bias)
    directions = torch.randn(DIRECTIONS, 48, generator=torch.Generator().manual_seed(48))
    torch.testing.assert_close(answer[:-1], directions @ layer.weight + layer.bias)


@pytest.mark.parametrize("what", ["weight", "hook", "norm", "embedding"])
def test_only_what_was_changed_answers_otherwise(model: PreTrainedModel, what: str) -> None:
    other: Any = copy.deepcopy(model)
    name = {"norm": "model.norm:weight", "embedding": "model.embed_tokens:weight"}.get(what, DOWN)
    module = other.get_submodule(name.partition(":")[0])
    if what == "hook":
        module.register_forward_pre_hook(lambda _, arguments: (arguments[0].round(),))
    else:
        module.weight.view(-1)[7] += 1e-3
    assert changed(taken(model), taken(other)) == {"document/0", f"{MODULE}{name}"}


def test_the_same_weight_kept_in_another_way_answers_the_same(model: PreTrainedModel) -> None:
    """``.weight`` says something else, and nobody is fooled by it."""

    class Packed(nn.Linear):
        kept: Tensor

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.kept)

    other: Any = copy.deepcopy(model)
    old = other.get_submodule(DOWN)
    new: Any = Packed(old.in_features, old.out_features, bias=False)
    new.kept = old.weight.detach().clone()
    new.weight.data.zero_()
    other.set_submodule(DOWN, new)
    assert changed(taken(model), taken(other)) == set()


def test_codes_of_a_layer_that_does_not_answer_are_compared_themselves(model: PreTrainedModel) -> None:
    class Mute(nn.Module):
        def __init__(self, code: int) -> None:
            super().__init__()
            self.in_features, self.out_features = 64, 112
            self.register_buffer("codes", torch.full((112, 64), code, dtype=torch.int8))

        def forward(self, x: Tensor, secret: int) -> Tensor:
            return x

    sides = []
    for code in (3, 3, 4):
        holder: Any = copy.deepcopy(model)
        holder.model.layers[0].mlp.extra = Mute(code)
        sides.append(taken(holder))
    name = f"{MODULE}model.layers.0.mlp.extra:codes"
    assert changed(sides[0], sides[1]) == set()
    assert changed(sides[0], sides[2]) == {name}


@pytest.mark.parametrize("name", ["mixtral", "gemma3", "falcon"])
def test_other_families_are_seen_whole(name: str) -> None:
    model = family(name)
    found = taken(model)
    assert changed(found, taken(copy.deepcopy(model))) == set()
    seen = {key.removeprefix(MODULE).partition(":")[0] for key in found}
    kept = {path.rpartition(".")[0] for path, _ in model.named_parameters()}
    assert kept <= seen


def test_nothing_of_the_model_is_handed_out() -> None:
    """What was noted before stays, whatever becomes of the model."""
    model = randomize_gains(tiny_llama(tied=False)).double().requires_grad_(False)
    before = taken(model)
    kept = {name: value.clone() for name, value in before.items()}
    for parameter in model.parameters():
        parameter.zero_()
    assert changed(before, kept) == set()


def test_texts_are_encoded_with_the_special_tokens_of_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    plain = encode_text(tokenizer, "ab")
    assert plain == tuple(tokenizer("ab")["input_ids"])
    tokenizer("a longer text", truncation=True, max_length=2)
    assert encode_text(tokenizer, "abcd")[:2] == plain
    assert len(encode_text(tokenizer, "abcd")) == len(plain) + 2
