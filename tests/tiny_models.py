"""The kit's random models, and how to save them as real folders."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from harness.testing.models import START, VOCABULARY, tiny_gpt2, tiny_llama, tiny_tokenizer

__all__ = ["START", "VOCABULARY", "save", "tiny_gpt2", "tiny_llama", "tiny_tokenizer"]


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write model and tokenizer into ``folder`` and return it."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
