"""What objectives read of real models: the same logits, the outputs of blocks, the inputs of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import softmax
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from harness.errors import BackendError
from harness.testing.models import VOCABULARY, random_documents, tiny_gpt2, tiny_llama
from harness.training.examples import Example, make_batch
from harness.training.objectives._reading import Reader


def make(model: Any, config: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    return model(config(**sizes, **settings)).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "soft-capped": lambda: make(Gemma2ForCausalLM, Gemma2Config, attn_implementation="eager"),
    "experts": lambda: make(
        Qwen3MoeForCausalLM, Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
}
BATCH = make_batch([Example(random_documents(1, 20, 1)[0]), Example(random_documents(1, 12, 2)[0], 4)], [0, 1])


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_the_model_and_gradients_reach_all_of_it(kind: str) -> None:
    model = MODELS[kind]()
    found = Reader("student", model).read(BATCH)
    with torch.no_grad():
        wanted = BATCH.logits(model)
    torch.testing.assert_close(found.head(found.states), wanted, rtol=1e-4, atol=1e-5)
    assert found.vocabulary == VOCABULARY
    model.requires_grad_(True)
    read = Reader("student", model).read(BATCH)
    read.head(read.states).square().sum().backward()
    assert all(each.grad is not None for each in model.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_blocks_are_read_in_their_order(kind: str) -> None:
    model = MODELS[kind]()
    found = Reader("student", model, ["blocks"]).read(BATCH)
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        hidden = model(BATCH.ids, output_hidden_states=True, use_cache=False).hidden_states
    assert len(found.blocks) == 2
    torch.testing.assert_close(found.blocks[0], hidden[1])
    assert not torch.allclose(found.blocks[1], hidden[1])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "experts"])
def test_attention_is_read_as_it_is_computed(kind: str) -> None:
    model = MODELS[kind]()
    found = Reader("student", model, ["attention"]).read(BATCH)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(BATCH.ids, output_attentions=True, use_cache=False).attentions
    assert len(found.attention) == len(wanted) == 2
    for read, probabilities in zip(found.attention, wanted, strict=True):
        key = read.key.repeat_interleave(read.query.shape[1] // read.key.shape[1], 1)
        scores = read.query @ key.transpose(2, 3) * read.scale
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        torch.testing.assert_close(softmax(scores.masked_fill(later, -torch.inf), -1), probabilities)


def test_attention_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(BackendError, match=r"teacher.*attention: sdpa.*match: hidden"):
        Reader("teacher", MODELS["soft-capped"](), ["attention"]).read(BATCH)
