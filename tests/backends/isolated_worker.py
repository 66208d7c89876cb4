"""A worker as an isolated backend starts it, with no library but numpy: rounds to nearest, or fails as it is told."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
settings = json.loads((folder / "settings.json").read_text())
documents = json.loads((folder / "calibration.json").read_text())
print(f"{len(documents)} documents of {sum(map(len, documents))} tokens", flush=True)
print("a word of warning", file=sys.stderr, flush=True)
if settings["do"] == "fail":
    raise RuntimeError("the library has had enough")
if settings["do"] == "hang":
    time.sleep(600)

import numpy as np  # noqa: E402 - what is told first must not wait for it
import numpy.typing as npt  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402


def words(codes: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int32]:
    """Codes packed along the first axis, the lowest bits of a word first, as int32."""
    each = 32 // bits
    whole = sum(codes[place::each].astype(np.uint32) << np.uint32(bits * place) for place in range(each))
    return np.ascontiguousarray(whole).view(np.int32)


bits, tensors = settings["bits"], load_file(folder / "model" / "model.safetensors")
for name in settings["modules"]:
    own = tensors.pop(f"{name}.weight", None)
    weight = tensors["model.embed_tokens.weight"] if own is None else own
    middle = 2 ** (bits - 1)
    scale = np.abs(weight).max(1, keepdims=True) / np.float32(middle - 1)
    codes = (weight / scale).round().astype(np.int64) + middle
    tensors[f"{name}.qweight"] = words(codes.T, bits)
    # The first version of the format keeps zero points less one.
    tensors[f"{name}.qzeros"] = np.ascontiguousarray(words(np.full((len(weight), 1), middle - 1), bits).T)
    tensors[f"{name}.scales"] = np.ascontiguousarray(scale.T)
first = settings["modules"][0]
if settings["do"] == "forget":
    for part in ("qweight", "qzeros", "scales"):
        del tensors[f"{first}.{part}"]
if settings["do"] == "spoil":
    tensors[f"{first}.scales"][0, 0] = np.nan
if settings["do"] == "leave half":
    del tensors[f"{first}.scales"]
if settings["do"] != "leave nothing":
    (folder / "checkpoint").mkdir()
    save_file(tensors, folder / "checkpoint" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": bits, "group_size": -1, "sym": True}
    if "lm_head" in settings["modules"]:
        config["tie_word_embeddings"] = False
    (folder / "checkpoint" / "config.json").write_text(json.dumps(config))
