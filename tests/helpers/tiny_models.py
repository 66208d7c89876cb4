"""The kit's random models, one of every family, and how to save them as real folders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from harness.testing.models import START, VOCABULARY, randomize_gains, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.helpers.zoo import make

__all__ = ["EXPERTS", "FAMILIES", "START", "VOCABULARY", "family", "save", "tiny_gpt2", "tiny_llama", "tiny_tokenizer"]


class ListedExpert(nn.Module):
    """One expert as a module of its own, as remote code and some libraries have it."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        inner = down.shape[1]
        self.gate_proj = nn.Linear(gate_up.shape[1], inner, bias=False)
        self.up_proj = nn.Linear(gate_up.shape[1], inner, bias=False)
        self.down_proj = nn.Linear(inner, down.shape[0], bias=False)
        for layer, weight in zip(self.children(), (gate_up[:inner], gate_up[inner:], down), strict=True):
            layer.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return product


class ListedMoe(nn.Module):
    """A mixture whose experts are a list of modules; each is called with the tokens that are routed to it."""

    def __init__(self, mixture: Any) -> None:
        super().__init__()
        self.gate, stacks = mixture.gate, mixture.experts
        pairs = zip(stacks.gate_up_proj, stacks.down_proj, strict=True)
        self.experts = nn.ModuleList(ListedExpert(gate_up, down) for gate_up, down in pairs)

    def forward(self, hidden_states: Tensor) -> Tensor:
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, chosen = self.gate(flat)
        total = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            if len(rows):
                total.index_add_(0, rows, expert(flat[rows]) * weights[rows, place, None])
        return total.reshape(hidden_states.shape)


def listed_mixtral() -> PreTrainedModel:
    """A Mixtral whose experts are modules."""
    model: Any = FAMILIES["mixtral"]()
    for layer in model.model.layers:
        layer.mlp = ListedMoe(layer.mlp)
    return model  # type: ignore[no-any-return]


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": partial(make, "llama"),
    "llama_tied": partial(make, "llama", tie_word_embeddings=True),
    **{name: partial(make, name) for name in ("qwen2", "qwen3", "mistral", "gemma2")},
    "gemma3": partial(make, "gemma3_text"),
    **{name: partial(make, name) for name in ("phi3", "gpt2", "gpt_neox", "opt", "falcon")},
    **{name: partial(make, name) for name in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")},
    "listed_experts": listed_mixtral,
}
"""Models of the shapes that differ for backends and probes, a few thousand weights each."""
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
"""Those with stacked experts."""


def family(name: str) -> PreTrainedModel:
    """A model of ``FAMILIES`` or ``ZOO`` by name: the same weights every time, gains and biases as in trained ones."""
    return ready(FAMILIES.get(name) or partial(make, name))


def ready(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A new model as ``family`` gives it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build()
        for path, parameter in model.named_parameters():
            if path.endswith("_bias"):  # Of stacked experts, two-dimensional; they would be zero.
                parameter.normal_(std=0.2)
    moved: Any = randomize_gains(model)
    moved.eval().requires_grad_(False)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write model and tokenizer into ``folder`` and return it."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
