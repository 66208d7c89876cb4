"""Finds weights that are the codes of their files: loaded as numbers, without the scale that makes weights of them.

codes in the file ─▶ a scale for them beside it? ─▶ is the loaded weight something else than the codes?
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from harness.errors import ModelError

_SCALES = re.compile(r"scale|absmax|SCB")
"""In the names of tensors that turn codes into weights."""
_OF_OTHERS = re.compile(r"(input|output|act|activation|[kqv]|kv|prob)_\w*scale")
"""In the names of scales of activations and of the KV cache."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the files: its safetensors dtype, its size in bytes, its file, and its name there."""

    dtype: str
    size: int
    path: Path
    key: str

    def read(self, rows: int | None = None) -> Tensor:
        """The values, or those of the first rows."""
        with safe_open(self.path, framework="pt") as file:
            part = file.get_slice(self.key)
            values: Tensor = part[:rows] if rows is not None and part.get_shape() else file.get_tensor(self.key)
            return values


def check_scales(name: str, weight: Tensor, own: Mapping[str, StoredTensor], declared: Mapping[str, Any]) -> None:
    """Raise ModelError if the weight of the layer ``name`` is stored as codes and these were loaded as they are.

    weight: as loaded. own: tensors of the layer in the files, the largest being the codes. declared: the
    quantization config.
    """
    codes = max(own.values(), key=lambda kept: kept.size)
    folder = codes.path.parent
    scales = {key: kept for key, kept in own.items() if _is_scale_of_weights(key.removeprefix(f"{name}."))}
    if not scales:
        raise ModelError(
            f"{folder}: the weight of {name} is stored as {codes.dtype} without a scale (found: "
            f"{', '.join(own)}); its codes would be used as weights: export the model again"
        )
    if not _holds(weight, codes) or all(bool((kept.read().float() == 1).all()) for kept in scales.values()):
        return
    status = declared.get("quantization_status")
    cause = f" (quantization_status is {status!r})" if status else ""
    raise ModelError(
        f"{folder}: the weight of {name} was loaded as the codes of its file ({codes.dtype}), not multiplied by "
        f"{', '.join(scales)}: transformers takes them for weights, because the quantization config of config.json "
        f"does not say that the files are compressed{cause}; correct it there"
        f"{' to compressed' if status else ''}, or export the model again"
    )


def takes_codes_for_weights(module: nn.Module) -> bool:
    """Whether the forward pass of a layer of compressed-tensors rounds its weight, as if that were no codes yet."""
    status = getattr(module, "quantization_status", None)
    return status is not None and str(getattr(status, "value", status)) != "compressed"


def _is_scale_of_weights(part: str) -> bool:
    return bool(_SCALES.search(part)) and not _OF_OTHERS.match(part)


def _holds(weight: Tensor, codes: StoredTensor) -> bool:
    """Whether a weight is made of nothing but the codes; zeros say nothing. Reads one row unless that one agrees."""
    for rows in (1, None):
        values = codes.read(rows).to(weight.device)
        loaded = weight.detach()[:rows]
        if values.shape != loaded.shape or not torch.equal(values.to(loaded.dtype), loaded):
            return False
    return bool(weight.any())
