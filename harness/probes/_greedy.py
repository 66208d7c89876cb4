"""Greedy decoding that depends only on weights and prompt, for probes that generate text.

Imported only while observing: torch and transformers come with it.
"""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from harness.models.language_model import plain_decoding, replace_attribute

__all__ = ["NonFiniteWatch", "plain_decoding", "replace_attribute"]


class NonFiniteWatch(LogitsProcessor):
    """Records which rows of a batch had NaN or +inf logits; changes nothing."""

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = (torch.isnan(scores) | torch.isposinf(scores)).any(dim=-1)
        self.rows = bad if self.rows is None else self.rows | bad
        return scores
