"""Key-value caches whose rows can be dropped, joined and repeated: layers that keep every token as [B, H, S, D].

Legend: B rows, H heads, S tokens, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Pair = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


class UnusableCacheError(Exception):
    """A model keeps something else between tokens than the keys and values of all of them."""


def make_cache(layers: list[Pair] | None = None) -> DynamicCache:
    """A cache that drops no token, empty or with the given keys and values."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers or ()):
        cache.update(keys, values, index)
    return cache


def layers_of(cache: Any) -> list[Pair]:
    """Keys and values of every layer. Raises UnusableCacheError."""
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise UnusableCacheError(f"it keeps a {type(cache).__name__} of its own kind between tokens")
    layers = cast("list[DynamicLayer]", cache.layers)
    pairs = [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]
    if not pairs or any(keys is None or keys.dim() != 4 for keys, _ in pairs):
        raise UnusableCacheError("it does not keep its keys and values in the cache that it is given")
    return pairs


def map_layers(cache: Any, change: Callable[[Tensor], Tensor]) -> DynamicCache:
    """A cache of changed keys and values."""
    return make_cache([(change(keys), change(values)) for keys, values in layers_of(cache)])


def join(one: Any, other: Any) -> DynamicCache:
    """The rows of both caches in one, the shorter padded with zeros on the left."""
    width = max(layers_of(each)[0][0].shape[2] for each in (one, other))
    sides = [[(pad_left(k, width), pad_left(v, width)) for k, v in layers_of(each)] for each in (one, other)]
    joined = zip(*sides, strict=True)
    return make_cache([(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in joined])


def pad_left(x_BHSD: Tensor, width: int) -> Tensor:
    """Zeros before the first token, up to a width of S."""
    return torch.nn.functional.pad(x_BHSD, (0, 0, width - x_BHSD.shape[2], 0))
