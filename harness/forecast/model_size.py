"""Reads the size of a model from the headers of its weight files: nothing is loaded or downloaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.models.gguf_file import read_gguf
from harness.models.headers import find_folder, read_header, read_parts
from harness.records.plan import GGUF

BYTES = {"auto": 4, "float32": 4, "float16": 2, "bfloat16": 2}
"""Of a weight, by its dtype."""


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


def _vocabulary(folder: Path) -> int | None:
    sizes = (part.get("vocab_size") for part in read_parts(folder))
    return next((size for size in sizes if isinstance(size, int)), None)
