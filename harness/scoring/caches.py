"""Key-value caches whose rows can be dropped, joined and repeated: layers that keep every token as [B, H, S, D].

Legend: B rows, H heads, S tokens, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Pair = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


ROOM = 64
"""Tokens for which a layer has room when it is enlarged."""


class RoomyLayer(DynamicLayer):
    """A layer with room for further tokens: a new one is written beside those that are there, which are not copied."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Pair:
        """Add tokens [B, H, T, D]; returns the keys and values of all."""
        length = self.keys.shape[2] if self.keys is not None else 0
        end = length + key_states.shape[2]
        if not self._buffers or end > self._buffers[0].shape[2]:
            self._enlarge(length, end, key_states, value_states)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def _enlarge(self, length: int, end: int, *states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = states[0].dtype, states[0].device, True
        old = self._buffers
        self._buffers = [new.new_empty(*new.shape[:2], end + ROOM, new.shape[3]) for new in states]
        for buffer, before in zip(self._buffers, old, strict=False):
            buffer[:, :, :length] = before[:, :, :length]

    def shift(self, counts: Sequence[int]) -> None:
        """Drop the last tokens of each row, so many of each, and put zeros before its first one."""
        end = cast(Tensor, self.keys).shape[2]
        for buffer in self._buffers:
            for row, count in enumerate(counts):
                if count:
                    buffer[row, :, count:end] = buffer[row, :, : end - count].clone()
                    buffer[row, :, :count] = 0

    def keep(self, rows: Sequence[int], first: int) -> None:
        """Keep these rows, in their order, from a token on; only rows that change their place are copied."""
        moved = [(place, row) for place, row in enumerate(rows) if place != row]
        end = cast(Tensor, self.keys).shape[2]
        for buffer in self._buffers:
            for place, row in moved:
                buffer[place, :, first:end] = buffer[row, :, first:end]
        self._buffers = [buffer[: len(rows), :, first:] for buffer in self._buffers]
        self.keys, self.values = (buffer[:, :, : end - first] for buffer in self._buffers)


class UnusableCacheError(Exception):
    """A model keeps something else between tokens than the keys and values of all of them."""


def make_cache(layers: list[Pair] | None = None) -> DynamicCache:
    """A cache that drops no token, empty or with the given keys and values."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = RoomyLayer
    for index, (keys, values) in enumerate(layers or ()):
        cache.update(keys, values, index)
    return cache


def layers_of(cache: Any) -> list[Pair]:
    """Keys and values of every layer. Raises UnusableCacheError."""
    if type(cache) is not DynamicCache or any(type(layer) is not RoomyLayer for layer in cache.layers):
        raise UnusableCacheError(f"it keeps a {type(cache).__name__} of its own kind between tokens")
    layers = cast("list[RoomyLayer]", cache.layers)
    pairs = [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]
    if not pairs or any(keys is None or keys.dim() != 4 for keys, _ in pairs):
        raise UnusableCacheError("it does not keep its keys and values in the cache that it is given")
    return pairs


def map_layers(cache: Any, change: Callable[[Tensor], Tensor]) -> DynamicCache:
    """A cache of changed keys and values."""
    return make_cache([(change(keys), change(values)) for keys, values in layers_of(cache)])


def keep_rows(cache: Any, rows: Sequence[int], first: int) -> None:
    """Leave only some rows in a cache, in their order, and of each the tokens from ``first`` on.

    No row may come before a place from which a later one is taken: each stays or moves to the place of one that goes.
    """
    for layer in cache.layers:
        layer.keep(rows, first)


def join(one: Any, other: Any) -> DynamicCache:
    """The rows of both caches in one, the shorter padded with zeros on the left."""
    width = max(layers_of(each)[0][0].shape[2] for each in (one, other))
    sides = [[(pad_left(k, width), pad_left(v, width)) for k, v in layers_of(each)] for each in (one, other)]
    joined = zip(*sides, strict=True)
    return make_cache([(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in joined])


def pad_left(x_BHSD: Tensor, width: int) -> Tensor:
    """Zeros before the first token, up to a width of S."""
    return torch.nn.functional.pad(x_BHSD, (0, 0, width - x_BHSD.shape[2], 0))
