"""Greedy decoding that depends on weights and prompt alone, for probes that let models write.

Imported only while observing: torch and transformers come with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList


class NonFiniteWatch(LogitsProcessor):
    """Notes which rows of a batch met NaN or +inf logits; changes nothing."""

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = (torch.isnan(scores) | torch.isposinf(scores)).any(dim=-1)
        self.rows = bad if self.rows is None else self.rows | bad
        return scores


class TokensAlone(LogitsProcessor):
    """Makes padding of the vocabulary impossible to choose, whatever it holds."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        padding = torch.arange(scores.shape[-1], device=scores.device) >= self._vocabulary
        return scores.masked_fill(padding, -torch.inf)


def processors(watch: NonFiniteWatch, vocabulary: int | None) -> LogitsProcessorList:
    """What looks at logits before a token is chosen. vocabulary: logits that are tokens, None for all."""
    first = [] if vocabulary is None else [TokensAlone(vocabulary)]
    return LogitsProcessorList([*first, watch])


@contextmanager
def plain_decoding(model: Any) -> Iterator[None]:
    """Decode as asked, whatever a checkpoint's generation_config.json adds (sampling, a repetition penalty)."""
    own = model.generation_config
    plain: Any = GenerationConfig  # untyped
    ids = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with replaced(model, "generation_config", plain(**ids)):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give ``owner`` another attribute for a while."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
