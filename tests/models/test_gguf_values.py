"""NaN and infinity in the blocks of GGUF files, by the values that the library that defines the format gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.models.gguf_values import _SCALES, find_non_finite_values

gguf = pytest.importorskip("gguf")
FLOAT_TYPES = ("F16", "F32", "BF16")


def write(path: Path, kind: Any, data: Any, shape: tuple[int, ...]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    dtype = {"F16": np.float16, "F32": np.float32}.get(kind.name)
    if dtype is not None:
        writer.add_tensor("t.weight", data.view(dtype).reshape(shape))
    else:
        writer.add_tensor("t.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", [*FLOAT_TYPES, *_SCALES, "IQ4_NL", "IQ4_XS", "MXFP4"])
def test_rows_are_named_just_where_values_are_not_finite(tmp_path: Path, name: str) -> None:
    """Blocks of random bytes, of which many scales are NaN: the library's values decide which rows are to be named."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    row = 256 // block * size
    data = np.random.default_rng(0).integers(0, 256, (64, row), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.dequantize(data, kind).reshape(64, -1)
    wanted = np.flatnonzero(~np.isfinite(values).all(1)).tolist()
    found, unknown = find_non_finite_values(write(tmp_path / "x.gguf", kind, data, (64, 256)))
    assert not unknown
    if not wanted:
        assert name == "MXFP4"
        assert not found
        return
    assert 0 < len(wanted) < 64 or name in FLOAT_TYPES
    (only,) = found
    named = [
        number
        for part in only.units.replace("rows ", "").replace("row ", "").partition(" and ")[0].split(", ")
        for number in range(int(part.split("–")[0]), int(part.split("–")[-1]) + 1)
    ]
    assert named == wanted[: len(named)]


def test_an_expert_is_named_and_finite_files_say_nothing(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    values = np.random.default_rng(1).standard_normal((4, 8, 64)).astype(np.float32)
    data = gguf.quantize(values, kind)
    assert find_non_finite_values(write(tmp_path / "good.gguf", kind, data, ())) == ((), ())
    data[2, 5, :2] = np.array([np.nan], np.float16).view(np.uint8)
    (found,), unknown = find_non_finite_values(write(tmp_path / "bad.gguf", kind, data, ()))
    assert (str(found), unknown) == ("t.weight, expert 2", ())
