"""NaN and infinity in a GGUF file, found in what its tensors store, without computing their values.

A quantized block holds whole numbers, which are finite, and scales of 16 bits, which may not be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.modules.non_finite import NonFinite, format_units

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCALES: Mapping[str, slice] = {
    "Q4_0": slice(0, 2),
    "Q4_1": slice(0, 4),
    "Q5_0": slice(0, 2),
    "Q5_1": slice(0, 4),
    "Q8_0": slice(0, 2),
    "Q2_K": slice(80, 84),
    "Q3_K": slice(108, 110),
    "Q4_K": slice(0, 4),
    "Q5_K": slice(0, 4),
    "Q6_K": slice(208, 210),
}
"""The bytes of a block that are float16, from the block structures of ggml (ggml-common.h)."""
_BFLOAT16_EXPONENT = 0x7F80
_CHUNK = 2**22
"""Values that are looked at together."""


def find_non_finite_values(path: Path) -> tuple[tuple[NonFinite, ...], tuple[str, ...]]:
    """Every tensor of a GGUF file with NaN or infinity, with its rows or experts, and the types that cannot be read."""
    from gguf import GGUFReader

    found, unknown = list[NonFinite](), set[str]()
    for tensor in GGUFReader(path).tensors:
        try:
            described = _describe(tensor)
        except NotImplementedError:
            unknown.add(tensor.tensor_type.name)
        else:
            found += [] if described is None else [described]
    return tuple(sorted(found, key=lambda each: each.tensor)), tuple(sorted(unknown))


def _describe(tensor: Any) -> NonFinite | None:
    shape = tuple(reversed(tensor.shape.tolist()))
    units = 1 if len(shape) == 1 else shape[0]
    data = tensor.data.reshape(units, -1)
    step = max(1, _CHUNK * units // max(1, int(tensor.n_elements)))
    bad = [_is_bad(data[start : start + step], tensor.tensor_type) for start in range(0, units, step)]
    numbers = np.flatnonzero(np.concatenate(bad)).tolist()
    if not numbers:
        return None
    digest = hashlib.sha256(f"{tensor.name} {shape} {numbers}".encode()).hexdigest()
    named = "" if len(shape) == 1 else format_units("expert" if len(shape) > 2 else "row", numbers)
    return NonFinite(tensor.name, named, digest)


def _is_bad(data_UN: NDArray[Any], kind: Any) -> NDArray[np.bool_]:
    """Which units of some stored data hold values that are not finite, bool [U]."""
    from gguf import GGML_QUANT_SIZES, dequantize

    units = len(data_UN)
    if np.issubdtype(data_UN.dtype, np.floating):
        held = ~np.isfinite(data_UN)
    elif kind.name == "BF16":
        held = (data_UN.view(np.uint16) & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT
    elif kind.name in ("I8", "I16", "I32", "I64"):
        held = np.zeros((units, 1), dtype=np.bool_)
    elif kind.name in _SCALES:
        blocks = data_UN.reshape(units, -1, GGML_QUANT_SIZES[kind][1])
        held = ~np.isfinite(np.ascontiguousarray(blocks[:, :, _SCALES[kind.name]]).view(np.float16))
    else:
        with np.errstate(all="ignore"):
            held = ~np.isfinite(dequantize(data_UN, kind))
    found: NDArray[np.bool_] = held.reshape(units, -1).any(1)
    return found
