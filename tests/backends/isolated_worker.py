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
from safetensors.numpy import load_file, save_file  # noqa: E402

tensors = load_file(folder / "model" / "model.safetensors")
weights, packed = {}, {}
for name in settings["modules"]:
    weight = tensors[f"{name}.weight"]
    scale = np.abs(weight).max(1, keepdims=True) / np.float32(2 ** (settings["bits"] - 1) - 1)
    weights[name] = (weight / scale).round() * scale
    stored = weight.size * settings["bits"] // 8 + len(weight) * 2
    packed[name] = {"bits": settings["bits"], "group_size": None, "symmetric": True, "stored_bytes": stored}
if settings["do"] == "forget":
    del weights[settings["modules"][0]]
if settings["do"] == "spoil":
    weights[settings["modules"][0]][0, 0] = np.nan
if settings["do"] != "leave nothing":
    save_file(weights, folder / "result.safetensors")
    (folder / "result.json").write_text(json.dumps(packed))
