"""Sizes are those of the files: a reference that is loaded in a wider dtype makes no variant look small."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from harness import pocket
from tests.endtoend.test_check import INT8, read, run, write_variant

SUITE = "description: sizes\ndocuments: {data: pocket-heldout, max: 2, context: 64}\nmeasures: [memory]\n"
GATE = """\
description: half of the reference
rules:
  - {rule: at_most, metric: memory.weight_bytes, of: reference, limit: 0.5, why: it must fit on half of the disk}
"""


def test_eight_bits_beside_a_bfloat16_file_are_more_than_half(tmp_path: Path) -> None:
    """Loaded as float32, the reference would be twice its file, and the variant 0.35 of it."""
    code, output = run(tmp_path, "check", write_variant(tmp_path, "int8", INT8, suite=SUITE, gate=GATE))
    content = read(tmp_path, "int8")
    assert code == 1, output
    (size,) = [m for m in content["measurements"] if m["name"] == "memory.weight_bytes"]
    with safe_open(Path(pocket.__file__).parent / "model/model.safetensors", framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a dict
    assert size["reference"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert 0.55 < size["variant"] / size["reference"] < 0.75
    assert "plain floats in the dtype of the files" in size["method"]
    assert any("stored as bfloat16, converted to float32 as declared" in note["text"] for note in content["notes"])
