"""Writing a Llama into a GGUF file with the library that defines the format, and reading blocks without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

Floats = NDArray[np.float32]
NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Types of tokens in a GGUF file."""


def write_gguf(
    model: LlamaForCausalLM,
    path: Path,
    kind: str = "F32",
    *,
    tokens: Mapping[str, Any] | None = None,
    extra: Mapping[str, Floats] | None = None,
    values: Mapping[str, str] | None = None,
) -> Path:
    """The model as llama.cpp's converter writes it: matrices in ``kind``, norms in F32, rotary halves interleaved.

    tokens: the vocabulary (see ``spm_tokens``, ``bpe_tokens``). extra: further tensors. values: further text values.
    """
    import gguf

    config, type_of = model.config, gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    assert config.rope_parameters is not None
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in (values or {}).items():
        writer.add_string(key, value)
    _add_tokens(writer, tokens or spm_tokens())
    for name, weight in tensors_of(model).items():
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quantize(weight, type_of), raw_dtype=type_of)
    for name, weight in (extra or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(model: LlamaForCausalLM) -> dict[str, Floats]:
    """The tensors by their names in GGUF. Of q and k the two halves of each head are interleaved."""
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads or 0}
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    found = {"token_embd.weight": _array(model.model.embed_tokens), "output_norm.weight": _array(model.model.norm)}
    if not model.config.tie_word_embeddings:
        found["output.weight"] = _array(model.lm_head)
    for index, layer in enumerate(model.model.layers):
        for name, called in parts.items():
            weight = _array(layer.get_submodule(name))
            if called in heads:
                rows, inputs = weight.shape
                halves = weight.reshape(heads[called], 2, rows // heads[called] // 2, inputs)
                weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, inputs))
            found[f"blk.{index}.{called}.weight"] = weight
    return found


def spm_tokens() -> dict[str, Any]:
    """The vocabulary of the kit's tokenizer, one id for each printable character, as SentencePiece writes it."""
    tokens = ["<s>", "▁", *(chr(code) for code in range(33, 127))]
    return {
        "model": "llama",
        "tokens": tokens,
        "types": [CONTROL, *[NORMAL] * (len(tokens) - 1)],
        "bos": 0,
        "eos": 0,
        "scores": [0.0] * len(tokens),
    }


def bpe_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The vocabulary and merges of a byte-level tokenizer."""
    import json

    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    return {
        "model": "gpt2",
        "tokens": tokens,
        "types": [CONTROL if index in special else NORMAL for index in range(len(tokens))],
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "merges": [" ".join(pair) for pair in pipeline["model"]["merges"]],
    }


def q4_0(data: bytes) -> Floats:
    """Values of Q4_0 by the definition of ggml: 32 codes of 4 bits behind a float16, x = (q − 8)·d."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, 18)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32)
    return (codes - 8) * scale


def q8_0(data: bytes) -> Floats:
    """Values of Q8_0: 32 int8 behind a float16, x = q·d."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return blocks[:, 2:].copy().view(np.int8).astype(np.float32) * scale


def _array(module: Any) -> Floats:
    found: Floats = module.weight.detach().float().numpy()
    return found


def _add_tokens(writer: Any, tokens: Mapping[str, Any]) -> None:
    writer.add_tokenizer_model(tokens["model"])
    if tokens["model"] == "gpt2":
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(tokens["merges"])
    else:
        writer.add_token_scores(tokens["scores"])
        writer.add_unk_token_id(tokens["bos"])
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens["tokens"])
    writer.add_token_types(tokens["types"])
    writer.add_bos_token_id(tokens["bos"])
    writer.add_eos_token_id(tokens["eos"])
    writer.add_add_bos_token(tokens.get("adds_bos", True))
