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
from harness.modules.inspection import format_of_dtype, is_plain_weight, logical_weights, module_formats
from harness.records import ModuleFormat, NumberFormat

_FP8 = {name: NumberFormat(type="float", bits=8, element=name) for name in ("fp8_e4m3", "fp8_e5m2")}
_FP4 = NumberFormat(type="float", bits=4, element="fp4_e2m1")
_CODES = {
    "F8_E4M3": _FP8["fp8_e4m3"],
    "F8_E5M2": _FP8["fp8_e5m2"],
    "I8": NumberFormat(type="int", bits=8),
    "U8": NumberFormat(type="int", bits=8, element="uint8"),
    "I32": NumberFormat(type="int", bits=32),
    "F4": _FP4,
}
"""What safetensors' types of codes tell; packed integers may hold any format."""
_FLOATS = {8: _FP8["fp8_e4m3"], 4: _FP4}
"""What compressed-tensors means by a float of so many bits."""
_SCALES = ("scale", "absmax", "SCB")
"""What names of tensors have in them that turn codes into weights."""
_UNITS = {"tensor": "tensor", "channel": "channel", "block": "block", "token": "token", "attn_head": "head"}
"""compressed-tensors' strategies other than groups."""
_KEEPING = frozenset({"bitsandbytes"})
"""Methods whose weights stay codes, and that are not run to see it: the first forward pass of bitsandbytes repacks
4-bit weights on some processors, in a way that its own dequantization (when an adapter is merged) does not undo."""
_DTYPES = {torch.float8_e4m3fn: _FP8["fp8_e4m3"], torch.float8_e5m2: _FP8["fp8_e5m2"]}


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
                format=_CODES.get(dtype) or NumberFormat(type="other", element=dtype.lower()),
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
        stated.module: _refine(stated, model.get_submodule(stated.module))
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


def declared_format(module: nn.Module) -> tuple[NumberFormat | None, NumberFormat | None]:
    """What a module of a library says of the formats of its weight and of its inputs, None where it says nothing."""
    weight = module._parameters.get("weight")
    scheme, state = getattr(module, "quantization_scheme", None), getattr(weight, "quant_state", None)
    if scheme is not None and scheme.weights is not None:  # compressed-tensors
        inputs = scheme.input_activations
        return _of_arguments(scheme.weights), inputs and _of_arguments(inputs, dynamic=bool(inputs.dynamic))
    if state is not None:  # bitsandbytes, 4 bits
        groups = {"bits": 4, "symmetric": True, "granularity": "group", "group_size": int(state.blocksize)}
        kind = "codebook" if state.quant_type == "nf4" else "float"
        return NumberFormat.model_validate({"type": kind, "element": state.quant_type, **groups}), None
    if type(weight).__name__ == "Int8Params":
        threshold = float(getattr(getattr(module, "state", None), "threshold", 0.0) or 0.0)
        plain = NumberFormat(type="int", bits=8, symmetric=True, granularity="channel")
        inputs = {"granularity": "token", "dynamic": True, "outliers": threshold or None}
        return plain, plain.model_copy(update=inputs)
    if isinstance(getattr(module, "bits", None), int) and isinstance(getattr(module, "group_size", None), int):
        return _of_sizes(module), None
    if weight is not None and getattr(weight, "block_size", None) is not None:
        return _of_torchao(weight)
    return None, None


def _refine(stated: ModuleFormat, module: nn.Module) -> ModuleFormat:
    """A format with what the module itself says beyond the dtype of its codes."""
    weights, inputs = declared_format(module)
    known = {"format": weights, "activations": inputs}
    return stated.model_copy(update={name: each for name, each in known.items() if each is not None})


def _of_sizes(module: Any) -> NumberFormat:
    """What layers of the GPTQ family say by two numbers."""
    inputs = int(getattr(module, "infeatures", getattr(module, "in_features", 0)))
    if module.group_size in (-1, inputs):
        return NumberFormat(type="int", bits=module.bits, granularity="channel")
    return NumberFormat(type="int", bits=module.bits, granularity="group", group_size=module.group_size)


def _of_torchao(weight: Any) -> tuple[NumberFormat | None, NumberFormat | None]:
    dtype, block = getattr(getattr(weight, "qdata", None), "dtype", None), list(weight.block_size)
    if dtype is None:
        return None, None
    codes = _DTYPES.get(dtype) or format_of_dtype(dtype)
    sharing: dict[str, Any] = {}
    if block and block[-1] < weight.shape[-1]:
        sharing = {"granularity": "group", "group_size": block[-1]}
    elif block:
        sharing = {"granularity": "tensor" if block[0] == weight.shape[0] else "channel"}
    rounds = getattr(weight, "act_quant_kwargs", None) is not None or getattr(weight, "activation_quantization", None)
    inputs = NumberFormat(type="int", bits=8) if codes.type == "int" else codes
    dynamic = {"granularity": "token", "dynamic": True}
    return codes.model_copy(update=sharing), inputs.model_copy(update=dynamic) if rounds else None


def _of_arguments(arguments: Any, **fields: Any) -> NumberFormat:
    """The record of compressed-tensors in ours."""
    bits = arguments.num_bits
    plain = NumberFormat(type="int", bits=bits)
    if arguments.type != "int":
        plain = _FLOATS.get(bits) or NumberFormat(type="float", bits=bits)
    strategy = str(getattr(arguments.strategy, "value", arguments.strategy))
    unit = "group" if "group" in strategy else _UNITS.get(strategy, "none")
    size = arguments.group_size if unit == "group" else None
    own = {"granularity": unit, "group_size": size, "symmetric": bool(arguments.symmetric)}
    return plain.model_copy(update={**own, **fields})


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
