"""Plants outliers by powers of two: the model's function is unchanged bit for bit, but quantizing it becomes hard.

A model of this size, freshly trained, has none of the outlier channels of large models (Dettmers et al. 2022). Two
rewrites create some. A power of two changes only the exponent of a number, so in float32 and bfloat16 every product
and every sum keeps its bits; float16 has too few exponents for it.

* A norm's gain times f in some channels, the consuming columns divided by f: the activations get outlier
  channels.
* Two rows of a key projection that RoPE rotates as one pair times f, the same rows of the queries that read
  it divided by f: the weights, and the key cache, get outlier channels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

from harness.pocket import MODEL_DIR
from harness.pocket.draws import Draws


@dataclass(frozen=True)
class Plant:
    """Positions and factors of planted outliers. `channels` are the same in every norm, as in large models."""

    channels: tuple[int, ...]
    norm_factor: float
    pairs: tuple[int, ...]  # one RoPE pair for every key head
    key_factor: float

    def inverse(self) -> Plant:
        """The plant that undoes this one exactly."""
        return Plant(self.channels, 1.0 / self.norm_factor, self.pairs, 1.0 / self.key_factor)


def draw_plant(
    kv_heads: int,
    head_size: int,
    channels: tuple[int, ...],
    norm_factor: float = 64.0,
    key_factor: float = 16.0,
    seed: int = 0,
) -> Plant:
    """A plant with the given channels and one randomly drawn RoPE pair for every key head."""
    draws = Draws("plant", seed)
    pairs = tuple(draws.draw_below(head_size // 2) for _ in range(kv_heads))
    return Plant(channels, norm_factor, pairs, key_factor)


def load_plant() -> Plant:
    """The plant of the model in MODEL_DIR, as recorded by its training."""
    record = json.loads((MODEL_DIR / "training.json").read_text(encoding="utf-8"))["plant"]
    return Plant(tuple(record["channels"]), record["norm_factor"], tuple(record["pairs"]), record["key_factor"])


@torch.no_grad()
def apply_plant(model: LlamaForCausalLM, plant: Plant) -> None:
    """Rewrite the weights of `model` in place."""
    config = model.config
    channels = list(plant.channels)
    size = int(config.head_dim or 0)
    group = int(config.num_attention_heads) // int(config.num_key_value_heads or 1)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            norm.weight[channels] *= plant.norm_factor
            for reader in readers:
                reader.weight[:, channels] /= plant.norm_factor
        for head, pair in enumerate(plant.pairs):
            for row in (pair, pair + size // 2):
                attention.k_proj.weight[head * size + row] *= plant.key_factor
                for query in range(head * group, (head + 1) * group):
                    attention.q_proj.weight[query * size + row] /= plant.key_factor
