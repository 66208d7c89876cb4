"""What the files of a model say before anything is loaded or downloaded: headers and JSON, read without torch."""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any, cast

from harness.pocket import MODEL_DIR
from harness.records import ModelSpec
from harness.records.plan import GGUF, Dtype

POCKET = "pocket"
LONGEST_HEADER = 100_000_000
FLOATS: dict[str, Dtype] = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtype in which a model is computed, by the safetensors dtype of most of its values."""


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


def find_dtype(spec: ModelSpec, folder: Path | None = None) -> Dtype | None:
    """The dtype in which a model is computed that asks for ``auto``: its own, and float32 for a GGUF file; None while
    its files are not on this machine. folder: where they are, if that is known.
    """
    if spec.file is not None or spec.model.endswith(GGUF):
        return "float32"
    found = folder or find_folder(spec.model, spec.revision)
    return own_dtype(found) if isinstance(found, Path) else None


def own_dtype(folder: Path) -> Dtype:
    """The dtype of a checkpoint: what config.json declares, as transformers reads it, else that of most values in the
    weight files, else float32.
    """
    declared = (part.get(key) for key in ("dtype", "torch_dtype") for part in read_parts(folder))
    stated = next((each for each in declared if each in FLOATS.values()), None)
    return cast(Dtype, stated) if stated else _stored_dtype(folder) or "float32"


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json; empty if it cannot be read, which the check reports."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """config.json, and its part about the language model, if it has one."""
    config = read_config(folder)
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]


def read_headers(folder: Path) -> list[dict[str, Any]]:
    """The headers of all safetensors files; none if one cannot be read, which the check reports."""
    headers = [read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    known = [each for each in headers if isinstance(each, dict)]
    return known if len(known) == len(headers) else []


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


def _stored_dtype(folder: Path) -> Dtype | None:
    counts: Counter[Dtype] = Counter()
    for header in read_headers(folder):
        for name, entry in header.items():
            if name != "__metadata__" and entry.get("dtype") in FLOATS:
                counts[FLOATS[entry["dtype"]]] += math.prod(entry["shape"])
    return max((count, dtype) for dtype, count in counts.items())[1] if counts else None


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
