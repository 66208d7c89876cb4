"""Files of a training: the state at a step, from which it continues to the same bits, and the finished result.

    <folder>/<key>.state.safetensors     the newest state, replaced whole
    <folder>/<key>.done.safetensors      the finished training
    <folder>/<key>.texts.safetensors     texts that a model wrote for it

The key is the hash of everything that the bits depend on, so a file never belongs to another training.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.errors import WriteError
from harness.system.files import sync_folder

STATE, DONE, TEXTS = ".state.safetensors", ".done.safetensors", ".texts.safetensors"


def save(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and plain data atomically: the file is the old one or the new one, whenever the process dies.

    Raises WriteError with the reason; the old file is then untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(held, partial, {"content": json.dumps(content)})
        with partial.open("rb") as file:
            # safetensors lets nobody else read it, not even the next step of a CI job.
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise WriteError(
            f"{path}: the state of the training could not be written: {getattr(error, 'strerror', None) or error}; "
            "free some space and run the same command, which continues from the state that was written before"
        ) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and plain data of a file that ``save`` wrote; None if there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {})["content"])
            return {name: file.get_tensor(name) for name in file.keys()}, content  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def remove_others(folder: Path, keys: Iterable[str]) -> None:
    """Delete the files of trainings with other keys: the run does not need them any more."""
    kept = tuple(keys)
    for path in folder.glob("*.safetensors") if folder.is_dir() else ():
        if path.name.endswith((STATE, DONE, TEXTS)) and not path.name.startswith(kept):
            path.unlink(missing_ok=True)
