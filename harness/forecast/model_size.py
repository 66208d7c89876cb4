"""Reads the size of a model from the headers of its weight files: nothing is loaded or downloaded."""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.models.gguf_file import read_gguf
from harness.pocket import MODEL_DIR
from harness.records.plan import GGUF

POCKET = "pocket"
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a weight, by its dtype."""
LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class ModelSize:
    """Parameters (elements of all tensors) and bytes of the weight files, and the vocabulary by config.json."""

    folder: Path
    parameters: int
    stored_bytes: int
    vocabulary: int | None


def model_size(model: str, revision: str | None = None) -> ModelSize | str:
    """The size of a model on this machine, or why it is not known. model: as in a plan (not ``reference``)."""
    if model.endswith(GGUF):
        return _gguf_size(Path(model))
    folder = find_folder(model, revision)
    if isinstance(folder, str):
        return folder
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))
    if not files:
        return f"{folder} contains no safetensors file"
    parameters = 0
    for path in files:
        header = read_header(path)
        if isinstance(header, str):
            return header
        parameters += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return ModelSize(folder, parameters, sum(path.stat().st_size for path in files), _vocabulary(folder))


def _gguf_size(path: Path) -> ModelSize | str:
    try:
        content = read_gguf(path)
    except HarnessError as error:
        return str(error)
    vocabulary = next(
        (tensor.shape[0] for tensor in content.tensors if tensor.name == "token_embd.weight" and tensor.shape), None
    )
    parameters = sum(tensor.values for tensor in content.tensors)
    return ModelSize(path.parent, parameters, path.stat().st_size, vocabulary)


def find_folder(model: str, revision: str | None) -> Path | str:
    """The folder of a model on this machine, or why there is none."""
    if model == POCKET:
        return MODEL_DIR
    if os.path.isdir(model):
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return f"{model} is not on this machine yet"


def read_header(path: Path) -> dict[str, Any] | str:
    """The header of a safetensors file: its length in 8 bytes, then JSON with the shape of every tensor."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LONGEST_HEADER:
                return f"{path} is not a safetensors file: its header would be {length} bytes long"
            content = json.loads(file.read(length))
        if not all(_is_shape(entry.get("shape")) for name, entry in content.items() if name != "__metadata__"):
            return f"{path} is not a safetensors file: a tensor has no shape"
    except (OSError, ValueError, struct.error, AttributeError, TypeError, RecursionError) as error:
        return f"{path} cannot be read as safetensors: {error}"
    return dict(content)


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _vocabulary(folder: Path) -> int | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    inner = config.get("text_config")
    size = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    return size if isinstance(size, int) else None
