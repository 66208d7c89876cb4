"""Greedy decoding that depends only on weights and prompt, for probes that generate text.

Imported only while observing: torch and transformers come with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor


class NonFiniteWatch(LogitsProcessor):
    """Records which rows of a batch had NaN or +inf logits; changes nothing."""

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = (torch.isnan(scores) | torch.isposinf(scores)).any(dim=-1)
        self.rows = bad if self.rows is None else self.rows | bad
        return scores


@contextmanager
def plain_decoding(model: Any) -> Iterator[None]:
    """Decode as requested, whatever a checkpoint's generation_config.json adds (sampling, a repetition penalty)."""
    own = model.generation_config
    plain: Any = GenerationConfig  # untyped
    ids = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with replace_attribute(model, "generation_config", plain(**ids)):
        yield


@contextmanager
def replace_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Temporarily replace an attribute of ``owner``."""
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
