"""Verifies a loaded model: every tensor came from the files; device, dtype and attention are the declared ones."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import ModelError
from harness.models.transformers_output import silence_transformers
from harness.modules.experts import stacked_tensor, stacks
from harness.modules.inspection import logical_weights, named_tensors
from harness.modules.linears import Linear, linears
from harness.records import ModelSpec

CACHE_SCALES = re.compile(r".*\.(k_scale|v_scale|kv_scale|[kv]_proj\.output_scale|[kv]_zero_point)")
"""Scales of an 8-bit KV cache beside the weights of a layer, as compressed-tensors, ModelOpt and vLLM name them."""


def check_loading(folder: Path, info: Mapping[str, Any]) -> None:
    """Raise ModelError if tensors were missing, unexpected or of another shape; the message names them.

    A head tied to the embedding counts as present if the embedding is (transformers omits it from the report). Scales
    of a KV cache are no weights: a model that does not use them computes the same without.
    """
    found = {
        "missing (they would be random numbers)": sorted(info["missing_keys"]),
        "unexpected": sorted(name for name in info["unexpected_keys"] if not CACHE_SCALES.fullmatch(name)),
        "of another shape": sorted(map(str, info["mismatched_keys"])),
        "failed": sorted(map(str, info["error_msgs"])),
    }
    problems = [f"{what}: {_first(names)}" for what, names in found.items() if names]
    if problems:
        raise ModelError(f"{folder}: the weight files do not fit config.json: tensors {'; '.join(problems)}")


def check_shapes(model: PreTrainedModel, source: str) -> None:
    """Raise ModelError if a plain tensor of a quantized model has another shape than its configuration says.

    With a quantizer transformers compares no shapes, because packed tensors have other ones; a norm of one value would
    then scale every channel. Modules that a quantizer replaced are not compared: they check their own.
    """
    config = copy.deepcopy(model.config)
    for part in (config, config.get_text_config(decoder=True)):
        vars(part).pop("quantization_config", None)
    with silence_transformers(), torch.device("meta"):
        plain = type(model)(config)
    loaded: dict[str, nn.Module] = dict(model.named_modules())
    meant: dict[str, nn.Module] = dict(plain.named_modules())
    for place, module in meant.items():
        if type(loaded.get(place)) is not type(module):
            continue
        found = dict(loaded[place].named_parameters(recurse=False))
        for name, expected in module.named_parameters(recurse=False):
            if name in found and found[name].shape != expected.shape:
                raise ModelError(
                    f"{source}: the tensor {place}.{name} has the shape {list(found[name].shape)}, expected "
                    f"{list(expected.shape)} by its configuration; make the file again"
                )


def check_ready(model: PreTrainedModel, spec: ModelSpec, quantization: str) -> None:
    """Raise ModelError unless device, dtype and attention are as declared and the mode is eval."""
    check_placement(model, spec.model, spec.device)
    check_dtypes(model, spec, quantization)
    used = {config._attn_implementation for config in _configs(model)}
    if used != {spec.attention}:
        raise ModelError(
            f"{spec.model}: the attention in use is {', '.join(map(str, sorted(used, key=str)))}, but declared is "
            f"{spec.attention}; this architecture may not have it"
        )
    if training := [name or "the model" for name, module in model.named_modules() if module.training]:
        raise ModelError(f"{spec.model}: {training[0]} is in training mode after eval(); dropout would be on")


def check_placement(model: nn.Module, source: str, declared: str) -> None:
    """Raise ModelError if a tensor has no values (meta device) or is on another device than declared."""
    device = torch.device(declared)
    for name, tensor in named_tensors(model):
        if tensor.is_meta:
            raise ModelError(f"{source}: {name} is on the meta device: it has a shape but no values")
        if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
            raise ModelError(f"{source}: {name} is on {tensor.device}, but declared is {declared}")


def check_dtypes(model: PreTrainedModel, spec: ModelSpec, quantization: str) -> None:
    """Raise ModelError if a floating-point parameter does not have the declared dtype.

    Accepted in float32 all the same: parameters that the architecture keeps there (``_keep_in_fp32_modules``), and in a
    prequantized checkpoint all parameters of modules with packed weights. Buffers are not checked.
    """
    declared = getattr(torch, spec.dtype)
    kept = tuple(
        name
        for field in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for name in getattr(model, field, None) or ()
    )
    for path, module in model.named_modules():
        if quantization and logical_weights(module) is not None:
            continue
        for name, tensor in module.named_parameters(path, recurse=False):
            accepted = tensor.dtype == torch.float32 and any(part in name for part in kept)
            if tensor.is_floating_point() and tensor.dtype != declared and not accepted:
                hint = "; its library supports only that: set dtype: in reference:" if quantization else ""
                raise ModelError(f"{spec.model}: {name} is {tensor.dtype}, but declared is {spec.dtype}{hint}")


def check_not_blank(model: PreTrainedModel, source: str) -> None:
    """Raise ModelError if all weights of a linear layer or an embedding are zero."""
    tables = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    for name, module in [*linears(model), *tables]:
        weight = module._parameters.get("weight")  # A layer that came quantized may have none, or one of a library.
        if type(weight) is nn.Parameter and weight.numel() and _is_zero(weight):
            raise ModelError(f"{source}: all weights of {name} are zero; the checkpoint is incomplete or damaged")
    for name, experts, parameter in stacks(model):
        if _is_zero(getattr(experts, parameter)):
            raise ModelError(f"{source}: all weights of {name} are zero; the checkpoint is incomplete or damaged")


def _is_zero(weight: Tensor) -> bool:
    if weight.is_floating_point() and weight.element_size() > 1:  # Much faster, but 8-bit floats lack it.
        return not bool(torch.stack(weight.aminmax()).any())
    return not bool(weight.any())


def find_ragged_groups(model: PreTrainedModel, groups: Mapping[str, int]) -> list[str]:
    """Names of linear layers whose inputs are not a multiple of their group size: the last group is shorter."""
    inputs = {name: _inputs(module) for name, module in linears(model)}
    inputs |= {name: stack.shape[2] for name in groups if (stack := stacked_tensor(model, name)) is not None}
    return [name for name, count in inputs.items() if name in groups and count % groups[name]]


def _inputs(module: Linear) -> int:
    return module.in_features if isinstance(module, nn.Linear) else module.weight.shape[0]


def _configs(model: PreTrainedModel) -> list[Any]:
    """The configurations in use: the model's own, and those of its sub-models."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    return list(configs.values())


def _first(names: list[str], show: int = 5) -> str:
    rest = f" and {len(names) - show} more" if len(names) > show else ""
    return ", ".join(names[:show]) + rest
