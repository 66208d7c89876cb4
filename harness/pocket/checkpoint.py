"""Writing the trained network as a `transformers` checkpoint in bfloat16."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from harness.pocket.network import Network, Shape


def llama_config(shape: Shape) -> LlamaConfig:
    """The configuration under which `transformers` computes what `Network` computes."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def convert_to_llama(network: Network) -> LlamaForCausalLM:
    """The network as a transformers model, rounded to bfloat16."""
    model: LlamaForCausalLM = LlamaForCausalLM(llama_config(network.shape))
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    model.tie_weights()
    torch.nn.Module.to(model, torch.bfloat16)
    model.train(False)
    return model


def save_llama(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors, readable by everybody."""
    settings = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model.generation_config = settings
    model.save_pretrained(folder)
    # Rounded to bfloat16, so that the file is half as large; measured and published in float32.
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
