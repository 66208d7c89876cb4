"""Determines how modules of a prequantized checkpoint are stored, and whether the GEMM reads their codes.

    file ─▶ loaded: what does each module store? ─▶ one forward pass ─▶ what does it store now?

Some libraries unpack a weight at loading, others at the first forward pass; from then on floats are multiplied,
whatever the configuration says. Such modules count as simulated, with the bytes of their packed form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from harness.errors import ModelError
from harness.models.verification.expert_files import describe_packed_experts
from harness.models.verification.stored_scales import StoredTensor, check_scales, takes_codes_for_weights
from harness.models.weight_files import CODE_DTYPES, read_json, stored_size, weight_files
from harness.modules.experts import stacks
from harness.modules.inspection import format_of_dtype, is_plain_weight, logical_weights, module_formats
from harness.numerics.named_formats import named_formats
from harness.records import CacheFormat, ModuleFormat, NumberFormat

_FP8 = {name: NumberFormat(type="float", bits=8, element=name) for name in ("fp8_e4m3", "fp8_e5m2")}
_FP4 = NumberFormat(type="float", bits=4, element="fp4_e2m1")
_MXFP4 = named_formats()["mxfp4"].record()
_CODES = {
    "F8_E4M3": _FP8["fp8_e4m3"],
    "F8_E5M2": _FP8["fp8_e5m2"],
    "I8": NumberFormat(type="int", bits=8),
    "U8": NumberFormat(type="int", bits=8, element="uint8"),
    "I32": NumberFormat(type="int", bits=32),
    "F4": _FP4,
}
"""Formats that safetensors dtypes identify; packed integers may have any format."""
_FLOATS = {8: _FP8["fp8_e4m3"], 4: _FP4}
"""compressed-tensors' float formats by number of bits."""
_UNITS = {"tensor": "tensor", "channel": "channel", "block": "block", "token": "token", "attn_head": "head"}
"""compressed-tensors' strategies other than groups."""
_KEEPING = frozenset({"bitsandbytes"})
"""Methods whose weights stay codes; no trial run is made, because the first forward pass of bitsandbytes repacks 4-bit
weights on some processors in a way that its own dequantization (when an adapter is merged) does not undo."""
_DTYPES = {torch.float8_e4m3fn: _FP8["fp8_e4m3"], torch.float8_e5m2: _FP8["fp8_e5m2"]}


def formats_in_files(
    model: PreTrainedModel, folder: Path, quantization: str, declared: Mapping[str, Any]
) -> dict[str, ModuleFormat]:
    """Modules whose weights are codes in the files but were loaded as plain floats, by name: their format in the files.

    declared: the quantization config. Raises ModelError as ``check_scales`` does: some loaders silently use codes as
    weights.
    """
    if not quantization:
        return {}
    stored = _tensors(folder, model)
    found = _stacks_in_files(model, stored, quantization)
    if quantization == "compressed-tensors":
        for stated, scheme in describe_packed_experts(model, stored, declared):
            form = _convert_arguments(scheme.weights)
            found[stated.module] = stated.model_copy(update={"format": form})
    for name, module in model.named_modules():
        weights = logical_weights(module)
        own = {key: kept for key, kept in stored.items() if key.startswith(f"{name}.")}
        weight = module._parameters.get("weight")
        if weights is None or weight is None or not own:
            continue
        dtype = max(own.values(), key=lambda kept: kept.size).dtype
        plain = is_plain_weight(weight, weights)
        coded = CODE_DTYPES.fullmatch(dtype) is not None
        if coded and (plain or takes_codes_for_weights(module)):
            check_scales(name, weight, own, declared)
        if coded and plain:
            rest = sum(kept.size for key, kept in own.items() if not key.endswith(".bias"))
            bias = module._parameters.get("bias")
            found[name] = ModuleFormat(
                module=name,
                type=type(module).__name__,
                parameters=weights + (0 if bias is None else bias.numel()),
                stored_bytes=sum(kept.size for kept in own.values()),
                bits_per_weight=8 * rest / weights,
                format=_CODES.get(dtype) or NumberFormat(type="other", element=dtype.lower()),
                kernel="simulated",
                backend=quantization,
            )
    return found


def _stacks_in_files(
    model: PreTrainedModel, stored: Mapping[str, StoredTensor], quantization: str
) -> dict[str, ModuleFormat]:
    """Stacks of experts that are MXFP4 codes in the files (``_blocks`` of 32 codes, ``_scales``) and floats here."""
    found = {}
    for name, module, parameter in stacks(model):
        weights = getattr(module, parameter).numel()
        own = {part: stored[f"{name}{part}"] for part in ("_blocks", "_scales", "_bias") if f"{name}{part}" in stored}
        if not {"_blocks", "_scales"} <= own.keys() or not is_plain_weight(module._parameters[parameter], weights):
            continue
        bias = module._parameters.get(f"{parameter}_bias")
        found[name] = ModuleFormat(
            module=name,
            type=type(module).__name__,
            parameters=weights + (0 if bias is None else bias.numel()),
            stored_bytes=sum(kept.size for kept in own.values()),
            bits_per_weight=8 * (own["_blocks"].size + own["_scales"].size) / weights,
            format=_MXFP4,
            kernel="simulated",
            backend=quantization,
        )
    return found


def cache_format(model: PreTrainedModel, declared: Mapping[str, Any], quantization: str) -> CacheFormat | None:
    """The KV cache format that a checkpoint declares (``kv_cache_scheme``) and its attention applies; else None."""
    scheme = declared.get("kv_cache_scheme")
    if quantization != "compressed-tensors" or not isinstance(scheme, dict):
        return None
    from compressed_tensors.quantization import QuantizationArgs

    arguments = QuantizationArgs.model_validate(scheme)
    if not arguments.dynamic and not any("k_scale" in module._parameters for module in model.modules()):
        return None
    form = _convert_arguments(arguments, dynamic=bool(arguments.dynamic))
    return CacheFormat(
        keys=form,
        values=form,
        bits_per_value=float(arguments.num_bits),
        residual=0,
        kernel="simulated",
        backend=quantization,
    )


def formats_in_use(
    model: PreTrainedModel, known: Mapping[str, ModuleFormat], quantization: str
) -> dict[str, ModuleFormat]:
    """The formats of all quantized modules by name, with the kernel that a forward pass of four tokens reveals.

    known: formats that can no longer be seen in memory. Raises ModelError if the model cannot be run at all.
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
    """The formats of weight and inputs that a library's module declares; None if it declares nothing."""
    weight = module._parameters.get("weight")
    scheme, state = getattr(module, "quantization_scheme", None), getattr(weight, "quant_state", None)
    if scheme is not None and scheme.weights is not None:  # compressed-tensors
        inputs = scheme.input_activations
        return _convert_arguments(scheme.weights), inputs and _convert_arguments(inputs, dynamic=bool(inputs.dynamic))
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
        return _read_sizes(module), None
    if weight is not None and getattr(weight, "block_size", None) is not None:
        return _read_torchao(weight)
    return None, None


def _refine(stated: ModuleFormat, module: nn.Module) -> ModuleFormat:
    """A format refined by what the module declares beyond the dtype of its codes."""
    weights, inputs = declared_format(module)
    known = {"format": weights, "activations": inputs}
    return stated.model_copy(update={name: each for name, each in known.items() if each is not None})


def _read_sizes(module: Any) -> NumberFormat:
    """The format of GPTQ-family layers, from bits and group size."""
    inputs = int(getattr(module, "infeatures", getattr(module, "in_features", 0)))
    if module.group_size in (-1, inputs):
        return NumberFormat(type="int", bits=module.bits, granularity="channel")
    return NumberFormat(type="int", bits=module.bits, granularity="group", group_size=module.group_size)


def _read_torchao(weight: Any) -> tuple[NumberFormat | None, NumberFormat | None]:
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


def _convert_arguments(arguments: Any, **fields: Any) -> NumberFormat:
    """Convert compressed-tensors' record of a format to ours."""
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


def _tensors(folder: Path, model: PreTrainedModel) -> dict[str, StoredTensor]:
    """Every tensor in the files of a verified folder, by the name that the model has for it."""
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    parameters: dict[str, Any] = dict(model.named_parameters())
    files = weight_files(folder, read_json(folder / "config.json"))
    return {
        rename_source_key(stored.key, renamings, [], model.base_model_prefix, parameters)[0]: stored
        for path in files
        for stored in _headers(path)
    }


def _headers(path: Path) -> Iterator[StoredTensor]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(name)
            dtype = part.get_dtype()
            yield StoredTensor(dtype, stored_size(dtype, part.get_shape()), path, name)
