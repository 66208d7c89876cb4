"""Settings of one tiny model for each architecture, by the ``model_type`` of transformers.

Every model has random weights, two layers (three where one of each kind needs them) and a hidden size of 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from harness.testing.models import START, VOCABULARY

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.15,
}  # fmt: skip
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}
ROUTED: dict[str, Any] = {"num_experts_per_tok": 2}
EXPERTS: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.15,
}  # fmt: skip
RECURRENT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.15,
}  # fmt: skip
_PADDED = GROUPED | {"pad_token_id": 0}
_SLIDING: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

ZOO: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 8},
    "mixtral": GROUPED | ROUTED | {"num_local_experts": 4},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "qwen2_moe": GROUPED | ROUTED | EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": GROUPED | ROUTED | EXPERTS,
    "gemma": _PADDED,
    "gemma2": GROUPED | {"query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": GROUPED | {"query_pre_attn_scalar": 8} | _SLIDING,
    "phi": SIZES | {"intermediate_size": 64},
    "phi3": _PADDED,
    "stablelm": SIZES | {"num_key_value_heads": 2, "intermediate_size": 64},
    "olmo2": _PADDED,
    "cohere": _PADDED,
    "granite": GROUPED,
    "granitemoe": GROUPED | ROUTED | {"num_local_experts": 4},
    "deepseek_v3": SIZES | ROUTED | {
        "num_key_value_heads": 4, "intermediate_size": 64, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
    },
    "gpt_oss": GROUPED | ROUTED | _SLIDING | {"num_local_experts": 4, "rope_parameters": None},
    "starcoder2": SIZES | {"num_key_value_heads": 2, "intermediate_size": 64},
    "smollm3": _PADDED | {"no_rope_layers": [1, 0]},
    "ernie4_5": _PADDED,
    "glm4": _PADDED,
    "nemotron": GROUPED,
    "exaone4": GROUPED | _SLIDING,
    "minimax": GROUPED | ROUTED | {
        "num_local_experts": 4, "block_size": 8, "layer_types": ["linear_attention", "full_attention"],
    },
    "lfm2": _PADDED | {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": SIZES | {"intermediate_size": 64},
    "gptj": GPT | {"rotary_dim": 4},
    "codegen": GPT | {"rotary_dim": 4},
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.15,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    },
    "mpt": {
        "vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 64,
        "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.15,
    },
    "falcon": SIZES | {"ffn_hidden_size": 64, "new_decoder_architecture": True, "num_kv_heads": 2},
    "mamba": RECURRENT | {"time_step_rank": 4},
    "mamba2": RECURRENT | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": RECURRENT | {"time_step_rank": 4},
    "rwkv": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "context_length": 64, "bos_token_id": 0, "eos_token_id": 0,
    },
    "recurrent_gemma": SIZES | {
        "num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 64, "lru_width": 32,
        "attention_window_size": 8, "pad_token_id": 0,
    },
    "jamba": SIZES | ROUTED | {
        "num_key_value_heads": 2, "intermediate_size": 64, "num_experts": 4, "attn_layer_period": 2,
        "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False,
        "mamba_d_state": 8, "mamba_dt_rank": 4, "pad_token_id": 0,
    },
    "bamba": SIZES | {
        "num_key_value_heads": 2, "intermediate_size": 64, "attn_layer_indices": [1], "mamba_n_heads": 4,
        "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8, "pad_token_id": 0,
    },
    "llama4_text": GROUPED | {
        "num_experts_per_tok": 1, "num_local_experts": 4, "intermediate_size_mlp": 64, "moe_layers": [1],
        "attention_chunk_size": 8, "pad_token_id": None,
    },
}  # fmt: skip
"""Architectures in wide use, with settings that give each of them all its kinds of layers."""


_TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "text_config": GROUPED | {
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        },
        "vision_config": {"depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
        "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93,
    },
    "llava": {
        "text_config": GROUPED | {"model_type": "llama"}, "image_token_index": 90,
        "vision_config": _TOWER | {"model_type": "clip_vision_model", "projection_dim": 32},
    },
    "gemma3": {
        "text_config": GROUPED | {"query_pre_attn_scalar": 8} | _SLIDING, "image_token_id": 90, "boi_token_index": 91,
        "vision_config": _TOWER | {"model_type": "siglip_vision_model"}, "eoi_token_index": 92,
        "mm_tokens_per_image": 4,
    },
    "mistral3": {
        "text_config": GROUPED | {"model_type": "mistral"}, "image_token_index": 90,
        "vision_config": _TOWER | {"model_type": "pixtral", "head_dim": 8},
    },
    "idefics3": {
        "text_config": GROUPED | {"model_type": "llama"}, "vision_config": _TOWER, "image_token_id": 90,
        "scale_factor": 2,
    },
    "llama4": {
        "text_config": ZOO["llama4_text"], "image_token_index": 90,
        "vision_config": _TOWER
        | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
}  # fmt: skip
"""Vision-language models, whose towers have more layers than their language models."""


def qwen2_tokenizer() -> PreTrainedTokenizerBase:
    """The ids of the kit's tokenizer by the class that transformers takes for this type, whatever its files name."""
    vocabulary = {START: 0, "Ġ": 1} | {chr(32 + index): index + 1 for index in range(1, VOCABULARY - 1)}
    tokens: dict[str, Any] = {"unk_token": START, "bos_token": START, "eos_token": START, "pad_token": None}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], **tokens)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = dict.fromkeys(("qwen2", "qwen2_vl"), qwen2_tokenizer)
"""Tokenizers of architectures that do not take the kit's."""


def make(model_type: str, **settings: Any) -> PreTrainedModel:
    """A model of an architecture, with its settings in ``ZOO`` or ``VISION`` and further ones; drawn from the global
    generator."""
    loader: Any = AutoModelForImageTextToText if model_type in VISION else AutoModelForCausalLM
    model: PreTrainedModel = loader.from_config(CONFIG_MAPPING[model_type](**((ZOO | VISION)[model_type] | settings)))
    return model


def make_model(model_type: str) -> PreTrainedModel:
    """A model with the same weights every time, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(model_type)
    model.eval().requires_grad_(False)
    return model
