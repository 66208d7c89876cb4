"""The network used in training: a Llama with the parameter names of `transformers.LlamaForCausalLM`.

Written out because explicit matmul-softmax attention compiles to about a quarter more tokens per second on
a CPU than the general implementation at this size. Legend of shape suffixes: B batch, T tokens, D hidden, H
query heads, K key-value heads, E head size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu


@dataclass(frozen=True)
class Shape:
    """The sizes of the network. Groups of 32, 64 and 128 weights divide both hidden sizes."""

    vocabulary: int = 1536
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    intermediate: int = 512
    context: int = 512
    rope_theta: float = 1000.0
    epsilon: float = 1e-5


class RMSNorm(nn.Module):
    """Root mean square layer norm (Zhang and Sennrich 2019) with a gain per channel."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x_BTD: Tensor) -> Tensor:
        x = x_BTD.float()
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021), the two halves of a head forming the pairs."""
    half = x_BHTE.shape[-1] // 2
    turned = torch.cat((-x_BHTE[..., half:], x_BHTE[..., :half]), dim=-1)
    return x_BHTE * cos_TE + turned * sin_TE


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads (Ainslie et al. 2023)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_size, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_size, shape.hidden, bias=False)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor, mask_TT: Tensor) -> Tensor:
        shape = self.shape
        batch, tokens, _ = x_BTD.shape
        q = self.q_proj(x_BTD).view(batch, tokens, shape.heads, shape.head_size).transpose(1, 2)
        k = self.k_proj(x_BTD).view(batch, tokens, shape.kv_heads, shape.head_size).transpose(1, 2)
        v = self.v_proj(x_BTD).view(batch, tokens, shape.kv_heads, shape.head_size).transpose(1, 2)
        q, k = rotate(q, cos_TE, sin_TE), rotate(k, cos_TE, sin_TE)
        repeats = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        scores_BHTT = (q @ k.transpose(-1, -2)) / math.sqrt(shape.head_size) + mask_TT
        mixed = scores_BHTT.float().softmax(-1).to(v.dtype) @ v
        output: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return output


class MLP(nn.Module):
    """Gated feed-forward layer (SwiGLU, Shazeer 2020)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        output: Tensor = self.down_proj(silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return output


class PocketLayer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden, shape.epsilon)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.epsilon)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor, mask_TT: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_TE, sin_TE, mask_TT)
        output: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return output


class PocketDecoder(nn.Module):
    """Embedding, decoder layers and final norm: `model.*` in the checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(PocketLayer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.epsilon)


class Network(nn.Module):
    """The language model; the embedding is also the output projection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = PocketDecoder(shape)
        pairs = torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size
        angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), shape.rope_theta**-pairs)
        angles = torch.cat((angles, angles), dim=-1)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.mask = torch.full((shape.context, shape.context), -torch.inf).triu(1)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits_BTV in float32 (or bfloat16 under autocast)."""
        tokens = ids_BT.shape[1]
        cos, sin, mask = self.cos[:tokens], self.sin[:tokens], self.mask[:tokens, :tokens]
        x_BTD = self.model.embed_tokens(ids_BT)
        for layer in self.model.layers:
            x_BTD = layer(x_BTD, cos, sin, mask)
        return linear(self.model.norm(x_BTD), self.model.embed_tokens.weight)


def initialize(network: Network, generator: torch.Generator) -> None:
    """Small embeddings, layers scaled by fan-in, and those that add to the residual stream scaled down."""
    depth = math.sqrt(2 * network.shape.layers)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(0.0, 0.02, generator=generator)
            elif parameter.ndim == 2:
                scale = 0.7 / math.sqrt(parameter.shape[1])
                scale /= depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                parameter.normal_(0.0, scale, generator=generator)
