"""Tiny random models that mix kinds of layers, use weights without calls, or cache a latent of keys and values."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from harness.testing.models import VOCABULARY, randomize_gains

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.15,
}  # fmt: skip
_GPT: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_MIXED: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 64, "mamba_d_state": 8}
_CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": _SIZES | {"state_size": 8, "time_step_rank": 4},
    "rwkv": _SIZES | {"attention_hidden_size": 32, "intermediate_size": 64},
    "jamba": _SIZES | _MIXED | {
        "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 4,
    },
    "bamba": _SIZES | _MIXED | {
        "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8,
    },
    "deepseek_v3": _SIZES | {
        "num_key_value_heads": 4, "intermediate_size": 64, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    },
    "bloom": _SIZES,
    "gptj": _GPT | {"rotary_dim": 4},
    "codegen": _GPT | {"rotary_dim": 4},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2},
}  # fmt: skip


def hybrid(kind: str) -> Any:
    """The model of a ``model_type``: the same weights every time, in evaluation mode."""
    build: Any = AutoModelForCausalLM.from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = build(CONFIG_MAPPING[kind](**_CONFIGS[kind]))
        return randomize_gains(model).eval().requires_grad_(False)
