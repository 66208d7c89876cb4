"""Harmless changes that affect at most the last bits of a model's outputs: no gate may stop them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from harness.backends import Compressed
from harness.selftest.mutants import NotApplicable, harmless, harmless_files
from harness.selftest.mutants._parts import blocks, find_linear, heads, norms, set_gain, set_weight, weight

SEED = 0
SHARDS = 3


@harmless()
def bfloat16_round_trip(model: PreTrainedModel) -> Compressed:
    """Weights were stored in bfloat16 and converted back."""
    return _cast_through(model, torch.bfloat16)


@harmless()
def float16_round_trip(model: PreTrainedModel) -> Compressed:
    """Weights were stored in float16 and converted back."""
    if any(bool(p.abs().max() > torch.finfo(torch.float16).max) for p in model.parameters()):
        raise NotApplicable(f"{type(model).__name__} has weights beyond the range of float16")
    return _cast_through(model, torch.float16)


@harmless()
def neurons_permuted(model: PreTrainedModel) -> Compressed:
    """The neurons of every feed-forward layer are permuted, consistently in all its matrices."""
    generator = torch.Generator().manual_seed(SEED)
    for block in blocks(model)[1]:
        gate, up, down = (find_linear(block, role) for role in ("gate_proj", "up_proj", "down_proj"))
        order = torch.randperm(len(weight(up)), generator=generator)
        set_weight(gate, weight(gate)[order])
        set_weight(up, weight(up)[order])
        set_weight(down, weight(down)[:, order])
    return Compressed(model)


@harmless()
def heads_permuted(model: PreTrainedModel) -> Compressed:
    """The heads of every layer are in reverse order, each group of queries with its keys and values."""
    query, kv, size = heads(model)
    if kv < 2:
        raise NotApplicable(f"{type(model).__name__} has one head of keys and values")
    for block in blocks(model)[1]:
        for role, rows in (("q_proj", query // kv * size), ("k_proj", size), ("v_proj", size)):
            module = find_linear(block, role)
            set_weight(module, weight(module).reshape(kv, rows, -1).flip(0).flatten(0, 1))
        out = find_linear(block, "o_proj")
        weight_OI = weight(out)
        set_weight(out, weight_OI.reshape(len(weight_OI), kv, -1).flip(1).flatten(1))
    return Compressed(model)


@harmless()
def powers_of_two_cancel(model: PreTrainedModel) -> Compressed:
    """Up projections were doubled and down projections halved, as balancing between layers does."""
    for block in blocks(model)[1]:
        up, down = find_linear(block, "up_proj"), find_linear(block, "down_proj")
        set_weight(up, weight(up) * 2)
        set_weight(down, weight(down) / 2)
    return Compressed(model)


@harmless()
def gains_moved(model: PreTrainedModel) -> Compressed:
    """The gains of norms were divided by powers of two and the layers after them scaled up, as SmoothQuant does."""
    for block in blocks(model)[1]:
        before = norms(block)
        if len(before) != 2:
            raise NotApplicable(f"the blocks of {type(model).__name__} do not have two norms with gains")
        readers = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
        for (_, norm, gain_D), roles in zip(before, readers, strict=True):
            factor_D = _power_of_two(gain_D)
            set_gain(norm, gain_D / factor_D)
            for role in roles:
                module = find_linear(block, role)
                set_weight(module, weight(module) * factor_D)
    return Compressed(model)


@harmless_files
def shards_saved_again(folder: Path) -> None:
    """The same tensors are stored in other files, in another order."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for path in files for name, tensor in load_file(path).items()}
    for path in (*files, folder / "model.safetensors.index.json"):
        path.unlink(missing_ok=True)
    names = sorted(tensors, reverse=True)
    where: dict[str, str] = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        some = names[shard::SHARDS]
        save_file({name: tensors[name] for name in some}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(some, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _cast_through(model: PreTrainedModel, dtype: torch.dtype) -> Compressed:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    return Compressed(model)


def _power_of_two(x: Tensor) -> Tensor:
    """The power of two nearest to the square root of each absolute value, 1 for 0."""
    return torch.exp2(x.abs().clamp(min=2.0**-20).log2().div(2).round()) * (x != 0) + (x == 0)
