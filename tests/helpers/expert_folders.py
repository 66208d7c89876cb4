"""A mixture as llm-compressor saves it: every expert's matrices packed on their own, though the class has stacks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 16
_PROJECTION = re.compile(r"(_proj|\.w[123])\.weight$")


def pack_projections(folder: Path, bits: int = 4) -> Mapping[str, Tensor]:
    """Pack every projection in the files of ``folder``; the values that their codes mean, by the name of the weight."""
    path = folder / "model.safetensors"
    held, values = load_file(path), dict[str, Tensor]()
    for name in [name for name in held if _PROJECTION.search(name)]:
        weight_OI = held.pop(name).float()
        outputs, inputs = weight_OI.shape
        blocks = weight_OI.view(outputs, inputs // GROUP, GROUP)
        scale = (blocks.abs().amax(2) / (2 ** (bits - 1) - 1)).bfloat16()
        codes = (blocks / scale.float()[..., None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        values[name] = (codes * scale.float()[..., None]).view(outputs, inputs)
        held[f"{name}_packed"] = pack_to_int32(codes.view(outputs, inputs).to(torch.int8), bits)
        held[f"{name}_scale"], held[f"{name}_shape"] = scale, torch.tensor([outputs, inputs])
    save_file({name: each.contiguous() for name, each in held.items()}, path, {"format": "pt"})
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    said: dict[str, Any] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "re:.*mlp.gate$", "re:.*shared_expert_gate$"],
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return values
