"""Attention with a simulated quantized KV cache, registered in transformers' attention interface.

A query attends to what it would see if the text had been decoded token by token with such a cache, whether it arrives
alone or with the whole text: quantized keys and values up to a boundary that depends on its position, full precision
after it. Keys are quantized as they are stored in the cache, with their rotary embedding.

    keys       ├──── quantized for all ────┼─ band ─┼─ full precision for all ─┤      of one chunk of queries
               0                           a        b                          S

Scores use the quantized keys before b and the full-precision keys after a; in the band the choice is made per query.

Legend: B texts, H heads, G key heads, R = H / G, T queries, S keys, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import BackendError
from harness.numerics.kv_cache import CachePart, text_starts

NAME = "simulated_kv_cache"
"""Attention implementation of models with a simulated cache."""
SETTINGS = "simulated_cache"
"""The attribute of an attention module that holds its CacheSettings."""
TEXT = "simulated_cache_text"
"""The attribute that, during a call, holds the function that remembers where the texts in the cache start."""
CHUNK_SCORES = 2**24
"""Number of scores computed at a time, over all texts, heads and queries."""
UNSUPPORTED = ("position_bias", "indices", "block_indices")
"""Arguments of attention functions that change the result and are not supported here."""


@dataclass(frozen=True)
class CacheSettings:
    """Cache formats of one layer; None: full precision."""

    keys: CachePart | None
    values: CachePart | None


@dataclass(frozen=True)
class AttentionCall:
    """One recorded call of the attention function; key, value: [B, G, S, D]."""

    module: nn.Module
    key: Tensor
    value: Tensor

    @property
    def layer(self) -> int | None:
        """Index of the cache layer that the module uses."""
        index: int | None = getattr(self.module, "layer_idx", None)
        return index


_RECORDED_CALLS: ContextVar[list[AttentionCall] | None] = ContextVar("trial", default=None)


@contextmanager
def record_calls() -> Iterator[list[AttentionCall]]:
    """Record every call, which is computed in full precision whatever the settings."""
    calls: list[AttentionCall] = []
    token = _RECORDED_CALLS.set(calls)
    try:
        yield calls
    finally:
        _RECORDED_CALLS.reset(token)


def cached_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention output [B, T, H, D] of queries [B, H, T, D], the newest T of S tokens.

    key, value: [B, G, S, D]. attention_mask: additive or boolean [B, 1 or H, T, S]; None: causal. others: further
    arguments of the interface without effect here. Raises BackendError for unsupported arguments.
    """
    calls, settings = _RECORDED_CALLS.get(), getattr(module, SETTINGS, None)
    if calls is not None:
        calls.append(AttentionCall(module, key, value))
        settings = CacheSettings(None, None)
    settings = _check_settings(module, settings, dropout, others)
    starts_B = _find_starts(module, attention_mask, key)
    B, H, T, D = query.shape
    G, S = key.shape[1:3]
    positions = torch.arange(S - T, S, device=key.device)
    keys = _Mixed(key, settings.keys, starts_B, positions)
    values = _Mixed(value, settings.values, starts_B, positions)
    query_BGRTD = query.reshape(B, G, H // G, T, D)
    outputs = []
    rows = max(1, CHUNK_SCORES // (B * H * S))
    for chunk in (slice(first, first + rows) for first in range(0, T, rows)):
        scores = keys.scores(query_BGRTD[:, :, :, chunk], chunk) * (D**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = _apply_mask(scores, attention_mask, positions[chunk])
        outputs.append(values.sums(_weights(scores, s_aux).to(query.dtype), chunk))
    return torch.cat(outputs, dim=3).flatten(1, 2).transpose(1, 2).contiguous(), None


class _Mixed:
    """Keys or values of one call in full precision and quantized, and which of both each query sees."""

    def __init__(self, x_BGSD: Tensor, part: CachePart | None, starts_B: Tensor, positions_T: Tensor) -> None:
        self._full = self._quantized = x_BGSD
        self._ends_BT = torch.zeros_like(starts_B[:, None] + positions_T)
        if part is not None:
            self._ends_BT = part.quantized_ends(positions_T, starts_B)
            if last := int(self._ends_BT.max()):
                self._quantized = part.quantize(x_BGSD[:, :, :last], starts_B)

    def scores(self, query_BGRTD: Tensor, rows: slice) -> Tensor:
        """Products [B, G, R, T, S] of queries with keys."""
        a, b, quantized = self._band(rows)
        if not b:
            return _product(query_BGRTD, self._full.transpose(2, 3))
        early = _product(query_BGRTD, self._quantized[:, :, :b].transpose(2, 3))
        late = _product(query_BGRTD, self._full[:, :, a:].transpose(2, 3))
        band = torch.where(quantized, early[..., a:], late[..., : b - a])
        return torch.cat([early[..., :a], band, late[..., b - a :]], dim=-1)

    def sums(self, weights_BGRTS: Tensor, rows: slice) -> Tensor:
        """Weighted sums [B, G, R, T, D] of values."""
        a, b, quantized = self._band(rows)
        if not b:
            return _product(weights_BGRTS, self._full)
        band = weights_BGRTS[..., a:b]
        early = torch.cat([weights_BGRTS[..., :a], band * quantized], dim=-1)
        late = torch.cat([band * ~quantized, weights_BGRTS[..., b:]], dim=-1)
        return _product(early, self._quantized[:, :, :b]) + _product(late, self._full[:, :, a:])

    def _band(self, rows: slice) -> tuple[int, int, Tensor]:
        """Begin and end of the band, and [B, 1, 1, T, band]: whether a query sees a token quantized."""
        ends_BT = self._ends_BT[:, rows]
        a, b = int(ends_BT.min()), int(ends_BT.max())
        tokens = torch.arange(a, b, device=ends_BT.device)
        return a, b, (tokens < ends_BT[..., None])[:, None, None]


def _product(left_BGRTX: Tensor, right_BGXY: Tensor) -> Tensor:
    """[B, G, R, T, Y]: heads that share keys are multiplied as additional rows, so that keys are not repeated."""
    B, G, R, T, X = left_BGRTX.shape
    return (left_BGRTX.reshape(B, G, R * T, X) @ right_BGXY).reshape(B, G, R, T, -1)


def _apply_mask(scores_BGRTS: Tensor, mask: Tensor | None, positions_T: Tensor) -> Tensor:
    """Scores with invisible keys set to the smallest number; the mask has rows for all queries."""
    _, G, R, T, S = scores_BGRTS.shape
    lowest = torch.finfo(scores_BGRTS.dtype).min
    if mask is None:
        later = torch.arange(S, device=scores_BGRTS.device) > positions_T[:, None]
        return scores_BGRTS.masked_fill(later, lowest)
    first = int(positions_T[0]) - (S - mask.shape[2])
    mask = mask[:, :, first : first + T, :S]
    mask = mask[:, :, None] if mask.shape[1] == 1 else mask.reshape(-1, G, R, T, S)
    return torch.where(mask, scores_BGRTS, lowest) if mask.dtype == torch.bool else scores_BGRTS + mask


def _weights(scores_BGRTS: Tensor, sinks_H: Tensor | None) -> Tensor:
    """Softmax in float32 (float64 stays float64); a sink takes part of each query's weight and contributes nothing."""
    precise = torch.float64 if scores_BGRTS.dtype == torch.float64 else torch.float32
    if sinks_H is None:
        return torch.softmax(scores_BGRTS, dim=-1, dtype=precise)
    B, G, R, T, S = scores_BGRTS.shape
    sinks = sinks_H.reshape(1, G, R, 1, 1).expand(B, G, R, T, 1)
    return torch.softmax(torch.cat([scores_BGRTS, sinks.to(scores_BGRTS.dtype)], -1), dim=-1, dtype=precise)[..., :S]


def _find_starts(module: nn.Module, mask: Tensor | None, key: Tensor) -> Tensor:
    """[B]: start of each text. If a sliding window hides the first tokens, the cache layer remembers it."""
    starts_B = text_starts(mask, len(key), key.device)
    remember: Callable[[Tensor], Tensor] | None = getattr(module, TEXT, None)
    return starts_B if remember is None else remember(starts_B)


def _check_settings(
    module: nn.Module, settings: CacheSettings | None, dropout: float, others: dict[str, Any]
) -> CacheSettings:
    name = type(module).__name__
    if settings is None:
        raise BackendError(
            f"kv_cache: {name} has no cache settings: it was not called when the backend tested the model"
        )
    if torch.compiler.is_compiling():
        raise BackendError("kv_cache: a simulated cache depends on positions, so the model cannot be compiled")
    if dropout:
        raise BackendError(f"kv_cache: {name} attends with dropout {dropout}; call eval() on the model")
    if extra := [argument for argument in UNSUPPORTED if others.get(argument) is not None]:
        raise BackendError(f"kv_cache: {name} attends with {extra[0]}, which the simulated cache does not support")
    return settings
