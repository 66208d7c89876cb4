"""A stand-in for llama-cpp-python: what the harness uses of its interface, computed with dequantized weights."""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from harness.models.loading import load
from harness.records import ModelSpec


class Llama:
    """``llama_cpp.Llama``: ids are read one call after the other, and the scores of all that was read are kept."""

    opened: ClassVar[list[Llama]] = []

    def __init__(self, model_path: str, n_ctx: int, logits_all: bool, verbose: bool, **_: Any) -> None:
        assert logits_all
        assert not verbose
        self.model: Any = load(ModelSpec(model=model_path), "inner").model
        self.room, self.ids, self.read = n_ctx, list[int](), 0
        self.scores = np.full((n_ctx, self.model.config.vocab_size), np.nan, np.float32)
        self.opened.append(self)

    def reset(self) -> None:
        """Forget what was read."""
        self.ids = []

    def eval(self, tokens: list[int]) -> None:
        """Read on."""
        if len(self.ids) + len(tokens) > self.room:
            raise ValueError("no room")
        before = len(self.ids)
        self.ids += tokens
        self.read += len(tokens)
        with torch.no_grad():
            found = self.model(torch.tensor([self.ids])).logits[0]
        self.scores[before : len(self.ids)] = found[before:].numpy()

    def close(self) -> None:
        """Free the memory."""
        self.model = None


def llama_print_system_info() -> bytes:
    """``llama_cpp.llama_print_system_info``: what the kernels were built for."""
    return b"CPU : SSE3 = 1 | AVX512 = 0 | FMA = 1 | REPACK = 1 | "


def install(monkeypatch: pytest.MonkeyPatch) -> type[Llama]:
    """Let ``import llama_cpp`` find the stand-in."""
    module = ModuleType("llama_cpp")
    module.__spec__ = importlib.machinery.ModuleSpec("llama_cpp", None)
    module.__dict__.update(
        {"Llama": Llama, "llama_print_system_info": llama_print_system_info, "__version__": "0.0-stand-in"}
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    Llama.opened.clear()
    return Llama
