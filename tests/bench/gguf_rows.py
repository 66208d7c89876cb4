"""GGUF files for the matrix: any Llama of a folder, its own vocabulary left out (ids are made by the reference)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write(model: str, path: Path, kind: str) -> Path:
    """The model of a folder (or ``pocket``) in a GGUF file. Raises ModelError for what is no Llama, or does not fit."""
    from harness.errors import MissingDependencyError, ModelError
    from harness.models.loading import load
    from harness.records import ModelSpec
    from tests.helpers.gguf_files import write_gguf

    loaded = load(ModelSpec(model=model), "model")
    if type(loaded.model).__name__ != "LlamaForCausalLM":
        raise ModelError("written for Llama alone")
    tokens = loaded.tokenizer.convert_ids_to_tokens(list(range(len(loaded.tokenizer))))
    bos, eos = (getattr(loaded.tokenizer, f"{which}_token_id") for which in ("bos", "eos"))
    vocabulary: dict[str, Any] = {"model": "llama", "tokens": tokens, "types": [1] * len(tokens)}
    vocabulary |= {"scores": [0.0] * len(tokens), "bos": bos or 0, "eos": eos or 0}
    written: Any = loaded.model
    try:
        return write_gguf(written, path, kind, tokens=vocabulary)
    except ImportError as error:
        raise MissingDependencyError("gguf", "the row", 'pip install "lm-shipcheck[gguf]"') from error
    except Exception as error:  # The library refuses rows that its blocks do not divide.
        raise ModelError(f"{type(error).__name__}: {error}") from error
