"""The kit's random models, one of every family, and how to save them as real folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from harness.testing.models import START, VOCABULARY, randomize_gains, tiny_gpt2, tiny_llama, tiny_tokenizer

__all__ = ["EXPERTS", "FAMILIES", "START", "VOCABULARY", "family", "save", "tiny_gpt2", "tiny_llama", "tiny_tokenizer"]

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.15,
}  # fmt: skip
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}
ROUTED: dict[str, Any] = {"num_experts_per_tok": 2}
_QWEN_MOE = ROUTED | {"num_experts": 4, "moe_intermediate_size": 32, "decoder_sparse_step": 1}


def _make(name: str, config_of: str = "", **config: Any) -> PreTrainedModel:
    """A model of transformers by the stem of its class names."""
    make: Any = getattr(transformers, f"{name}ForCausalLM")
    made: PreTrainedModel = make(getattr(transformers, f"{config_of or name}Config")(**config))
    return made


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
    "llama": lambda: _make("Llama", **GROUPED),
    "llama_tied": lambda: _make("Llama", **GROUPED, tie_word_embeddings=True),
    "qwen2": lambda: _make("Qwen2", **GROUPED),
    "qwen3": lambda: _make("Qwen3", **GROUPED),
    "mistral": lambda: _make("Mistral", **GROUPED, sliding_window=8),
    "gemma2": lambda: _make("Gemma2", **GROUPED, query_pre_attn_scalar=8, sliding_window=8),
    "gemma3": lambda: _make(
        "Gemma3", "Gemma3Text", **GROUPED, query_pre_attn_scalar=8, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": lambda: _make("Phi3", **GROUPED, pad_token_id=0),
    "gpt2": lambda: tiny_gpt2(n_embd=32, initializer_range=0.15),
    "gpt_neox": lambda: _make("GPTNeoX", **SIZES, intermediate_size=64),
    "opt": lambda: _make("OPT", **SIZES, ffn_dim=64, word_embed_proj_dim=32),
    "falcon": lambda: _make("Falcon", **SIZES, ffn_hidden_size=64, new_decoder_architecture=True, num_kv_heads=2),
    "mixtral": lambda: _make("Mixtral", **GROUPED, **ROUTED, num_local_experts=4),
    "qwen2_moe": lambda: _make("Qwen2Moe", **GROUPED, **_QWEN_MOE, shared_expert_intermediate_size=32),
    "qwen3_moe": lambda: _make("Qwen3Moe", **GROUPED, **_QWEN_MOE),
    "gpt_oss": lambda: _make(
        "GptOss", **GROUPED, **ROUTED, num_local_experts=4, sliding_window=8, rope_parameters=None,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "listed_experts": listed_mixtral,
}  # fmt: skip
"""One model of each family by name, a few thousand weights each."""
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
"""Those with stacked experts."""


def family(name: str) -> PreTrainedModel:
    """A model of a family: the same weights every time, gains and biases as trained ones have them, in eval mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = FAMILIES[name]()
        for path, parameter in model.named_parameters():
            if path.endswith("_bias"):  # Of stacked experts, two-dimensional; they would be zero.
                parameter.normal_(std=0.2)
    ready: Any = randomize_gains(model)
    ready.eval().requires_grad_(False)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write model and tokenizer into ``folder`` and return it."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
