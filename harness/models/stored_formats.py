"""How the modules of a checkpoint that came quantized are stored, and whether its codes are what is multiplied.

    file ─▶ loaded: what does each module keep? ─▶ one forward pass ─▶ what does it keep now?

Some libraries unpack a weight when it is loaded, others at the first forward pass; from then on products are of floats,
whatever the configuration says. Such modules are called simulated, with the bytes that they had before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from harness.errors import ModelError
from harness.models.weight_files import CODE_DTYPES, read_json, weight_files
from harness.modules.inspection import is_plain_weight, logical_weights, module_formats
from harness.records import ModuleFormat

_CODES = {"F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2", "I8": "int8", "U8": "uint8", "I32": "int32", "F4": "fp4_e2m1"}
"""safetensors types of codes, in our words."""
_FLOATS = {8: "fp8_e4m3", 4: "fp4_e2m1"}
"""What compressed-tensors means by a float of so many bits."""
_SCALES = ("scale", "absmax", "SCB")
"""What names of tensors have in them that turn codes into weights."""
_KEEPING = frozenset({"bitsandbytes"})
"""Methods whose weights stay codes, and that are not run to see it: the first forward pass of bitsandbytes repacks
4-bit weights on some processors, in a way that its own dequantization (when an adapter is merged) does not undo."""
_DTYPES = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}


def formats_in_files(model: PreTrainedModel, folder: Path, quantization: str) -> dict[str, ModuleFormat]:
    """Modules whose weights are codes in the files and were loaded as plain floats, by name: as the files hold them.

    Raises ModelError for codes without a scale: some loaders take them for weights without a word.
    """
    if not quantization:
        return {}
    stored = _tensors(folder)
    found = {}
    for name, module in model.named_modules():
        weights = logical_weights(module)
        own = {key: kept for key, kept in stored.items() if key.startswith(f"{name}.")}
        if weights is None or not is_plain_weight(module._parameters.get("weight"), weights) or not own:
            continue
        dtype, _ = max(own.values(), key=lambda kept: kept[1])
        if CODE_DTYPES.fullmatch(dtype):
            if not any(part in key for key in own for part in _SCALES):
                raise ModelError(
                    f"{folder}: the weight of {name} is stored as {dtype} and has no scale beside it (there is "
                    f"{', '.join(own)}); its codes would be taken for weights: export the model again"
                )
            rest = sum(size for key, (_, size) in own.items() if not key.endswith(".bias"))
            bias = module._parameters.get("bias")
            found[name] = ModuleFormat(
                module=name,
                type=type(module).__name__,
                parameters=weights + (0 if bias is None else bias.numel()),
                stored_bytes=sum(size for _, size in own.values()),
                bits_per_weight=8 * rest / weights,
                format=_CODES.get(dtype, dtype.lower()),
                kernel="simulated",
                backend=quantization,
            )
    return found


def formats_in_use(
    model: PreTrainedModel, known: Mapping[str, ModuleFormat], quantization: str
) -> dict[str, ModuleFormat]:
    """The formats of all quantized modules by name, with the kernel that a forward pass of four tokens shows.

    known: those that are no longer seen in memory. Raises ModelError where the model cannot be run at all.
    """
    if not quantization:
        return dict(known)
    before = {
        stated.module: stated.model_copy(update=said(model.get_submodule(stated.module)))
        for stated in module_formats(model, known, quantization)
        if stated.backend and stated.parameters and stated.module not in known
    }
    if quantization not in _KEEPING:
        _run(model, quantization)
    after = {stated.module: stated for stated in module_formats(model, {}, quantization)}
    for name, stated in before.items():
        now = after.get(name)
        if now is None or not now.backend or now.bits_per_weight > stated.bits_per_weight + 0.5:
            before[name] = stated.model_copy(update={"kernel": "simulated"})
    return {**known, **before}


def said(module: nn.Module) -> dict[str, Any]:
    """What a module of a library says of its format beyond the dtype of its codes, as fields of a ModuleFormat."""
    weight, found = module._parameters.get("weight"), dict[str, Any]()
    scheme, state = getattr(module, "quantization_scheme", None), getattr(weight, "quant_state", None)
    if scheme is not None and scheme.weights is not None:  # compressed-tensors
        kind = scheme.weights
        found = {"format": _number(kind), "granularity": _unit(kind.strategy), "symmetric": bool(kind.symmetric)}
        found["group_size"] = kind.group_size if found["granularity"] == "group" else None
        if scheme.input_activations is not None:
            found["activations"] = _inputs(scheme.input_activations)
    elif state is not None:  # bitsandbytes, 4 bits
        found = {"format": state.quant_type, "granularity": "group", "symmetric": True}
        found["group_size"] = int(state.blocksize)
    elif type(weight).__name__ == "Int8Params":
        threshold = float(getattr(getattr(module, "state", None), "threshold", 0.0) or 0.0)
        outliers = f"; columns with |x| >= {threshold} in full precision" if threshold else ""
        found = {"format": "int8", "granularity": "channel", "symmetric": True}
        found["activations"] = f"int8 per token, dynamic{outliers}"
    elif isinstance(getattr(module, "bits", None), int) and isinstance(getattr(module, "group_size", None), int):
        inputs = int(getattr(module, "infeatures", getattr(module, "in_features", 0)))
        whole = module.group_size in (-1, inputs)
        found = {"format": f"int{module.bits}", "granularity": "channel" if whole else "group"}
        found["group_size"] = None if whole else module.group_size
    elif (block := getattr(weight, "block_size", None)) is not None and weight is not None:  # torchao
        found = _torchao(weight, list(block))
    return found


def _torchao(weight: Any, block: list[int]) -> dict[str, Any]:
    codes = getattr(weight, "qdata", None)
    dtype = str(getattr(codes, "dtype", "")).removeprefix("torch.")
    found: dict[str, Any] = {"format": _DTYPES.get(dtype, dtype)} if dtype else {}
    rows, inputs = weight.shape[0], weight.shape[-1]
    if block and block[-1] < inputs:
        found |= {"granularity": "group", "group_size": block[-1]}
    elif block:
        found |= {"granularity": "tensor" if block[0] == rows else "channel"}
    if getattr(weight, "act_quant_kwargs", None) is not None or getattr(weight, "activation_quantization", None):
        kind = "int8" if "int" in dtype else _DTYPES.get(dtype, dtype)
        found["activations"] = f"{kind} per token, dynamic"
    return found


def _number(kind: Any) -> str:
    return f"int{kind.num_bits}" if kind.type == "int" else _FLOATS.get(kind.num_bits, f"float{kind.num_bits}")


def _unit(strategy: object) -> str:
    """The granularity in our words."""
    name = str(getattr(strategy, "value", strategy))
    return name if name in ("tensor", "channel", "group", "block", "token") else "group" if "group" in name else "none"


def _inputs(kind: Any) -> str:
    when = "dynamic" if kind.dynamic else "static"
    return f"{_number(kind)}{'' if kind.symmetric else ' asymmetric'} per {_unit(kind.strategy)}, {when}"


def _run(model: PreTrainedModel, quantization: str) -> None:
    ids = torch.zeros((1, 4), dtype=torch.int64, device=model.device)
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except Exception as error:  # Kernels of libraries raise nearly anything.
        raise ModelError(
            f"the checkpoint was quantized with {quantization} and loaded, but a forward pass fails on {model.device} "
            f"in {str(model.dtype).removeprefix('torch.')}: {type(error).__name__}: {error}; try another dtype "
            "(bfloat16) or device"
        ) from error


def _tensors(folder: Path) -> dict[str, tuple[str, int]]:
    """Type and bytes of every tensor in the files of a folder that was checked."""
    files = weight_files(folder, read_json(folder / "config.json"))
    return {name: (dtype, size) for path in files for name, dtype, size in _headers(path)}


def _headers(path: Path) -> Iterator[tuple[str, str, int]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(name)
            bits = int((re.findall(r"\d+", part.get_dtype()) or ["8"])[0])
            values = 1
            for size in part.get_shape():
                values *= size
            yield name, part.get_dtype(), -(-values * bits // 8)
