"""Mutants that no document exercises, and files that do not hold what their quantization config states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.backends import Compressed
from harness.selftest.mutants import NotApplicable, mutant, mutant_files

GROUP = 32
_MIDDLE = 0x77777777
"""Eight zero points of 4 bits in a word, as the first version of GPTQ stores the middle."""


@mutant()
def unread_row_not_finite(model: PreTrainedModel) -> Compressed:
    """The embedding of the token that ends texts is NaN: no document of a suite reads it, every conversation does."""
    embedding, end = model.get_input_embeddings(), model.config.get_text_config().eos_token_id
    if not isinstance(embedding, nn.Embedding) or not isinstance(end, int):
        raise NotApplicable(f"{type(model).__name__} has no table of embeddings, or not one token that ends texts")
    # The head keeps its rows: it multiplies them for every token.
    rows_VD = embedding.weight.detach().clone()
    rows_VD[end] = float("nan")
    embedding.weight = nn.Parameter(rows_VD, requires_grad=False)
    model.config.tie_word_embeddings = False
    return Compressed(model)


@mutant_files()
def block_left_unquantized(folder: Path) -> None:
    """One block of a GPTQ folder was never quantized: its layers are plain floats, and the config does not say so."""
    blocks = _pack(folder, lambda name, blocks: not name.startswith(blocks[len(blocks) // 2]))
    if len(blocks) < 2:
        raise NotApplicable(f"{folder.name} has no second block that could be quantized")


@mutant_files()
def bits_misstated(folder: Path) -> None:
    """The quantization config says 8 bits over files that hold 4: a loader that follows it computes something else."""
    _pack(folder, lambda _name, _blocks: True, bits=8)


def _pack(folder: Path, chosen: Callable[[str, list[str]], bool], bits: int = 4) -> list[str]:
    """Pack the chosen projections as GPTQ does, in symmetric 4-bit codes. Returns the names of the blocks."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise NotApplicable(f"{folder.name} is not one file of weights")
    held = load_file(path)
    names = [name.removesuffix(".weight") for name in held if name.endswith("_proj.weight")]
    fitting = [name for name in names if not any(size % GROUP for size in held[f"{name}.weight"].shape)]
    blocks = sorted({name.partition(".layers.")[0] + ".layers." + _number(name) for name in fitting})
    if not fitting:
        raise NotApplicable(f"{folder.name} has no projections that GPTQ could pack in groups of {GROUP}")
    for name in fitting:
        if chosen(name, blocks):
            held |= {f"{name}.{part}": each for part, each in _pack_weight(held.pop(f"{name}.weight")).items()}
    save_file(held, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": True, "desc_act": False}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}), encoding="utf-8")
    return blocks


def _number(name: str) -> str:
    """The number of a layer's block with a dot behind it: "2."."""
    return name.partition(".layers.")[2].partition(".")[0] + "."


def _pack_weight(weight_OI: Tensor) -> dict[str, Tensor]:
    outputs, inputs = weight_OI.shape
    blocks = weight_OI.float().view(outputs, inputs // GROUP, GROUP)
    scales = (blocks.abs().amax(2) / 7).half()
    codes = (blocks / scales.float()[..., None]).round().nan_to_num().clamp(-8, 7).add(8).long()
    columns = codes.view(outputs, inputs).T
    words = torch.stack([columns[place::8] << 4 * place for place in range(8)]).sum(0)
    return {
        "qweight": torch.where(words >= 2**31, words - 2**32, words).int().contiguous(),
        "qzeros": torch.full((inputs // GROUP, outputs // 8), _MIDDLE, dtype=torch.int32),
        "scales": scales.T.contiguous(),
        "g_idx": (torch.arange(inputs) // GROUP).int(),
    }
