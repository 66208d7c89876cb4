"""Inspects a loaded model: the tensors that each module stores, their bytes, and the format of its weight.

``state_dict()`` is never called here: some quantizing libraries rewrite the live model when it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import ModelError
from harness.modules.activations import RANGE
from harness.modules.experts import stacked_parameters
from harness.modules.linears import Linear, weight_of
from harness.records import ModuleFormat, NumberFormat
from harness.records.result import Role

_STATES: Mapping[str, tuple[str, ...]] = {"QuantState": (), "MatmulLtState": ("CB", "SCB")}
"""Classes, apart from tensors and dictionaries, in which bitsandbytes stores codes and scales, and the attributes that
contain them (none named: all); other attributes are left over from the last forward pass."""
_TABLES = frozenset({"wf"})
"""Attributes of linear layers with shift tables for packed codes, which can be recomputed (auto-round)."""
Seen = dict[tuple[int, int], Tensor]
"""Tensors that were counted, by storage location. They are kept alive, so that their location is not reused."""
_SIZES = (("in_features", "out_features"), ("infeatures", "outfeatures"))
"""Libraries' attribute names for the sizes of a linear layer."""
SHARED = " (shared)"
"""Suffix of the type of a module whose weight another module already counts, for example a tied head."""


def format_of_dtype(dtype: torch.dtype) -> NumberFormat:
    """The formats that a dtype alone identifies: codes packed in integers may have any other."""
    name = str(dtype).removeprefix("torch.")
    kind: Literal["float", "int"] = "float" if dtype.is_floating_point else "int"
    plain = NumberFormat(type=kind, bits=8 * dtype.itemsize)
    return plain if plain.name == name else plain.model_copy(update={"element": name})


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and plain tensor of everything that ``module`` itself stores: parameters and persistent buffers.

    Tensor subclasses are split into the tensors they contain, and so are scales that libraries attach to a parameter,
    to a linear layer or in a dictionary of it (bitsandbytes, hqq), and weights that torch packed for its integer
    kernels.
    """
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield from _plain(name, tensor)
    for name, value in vars(module).items():
        if not name.startswith("_") and isinstance(value, dict):
            yield from _iterate_tensors(f"{name}.", value)
    if logical_weights(module) is not None:
        named = {key: value for key, value in vars(module).items() if not key.startswith("_") and key not in _TABLES}
        yield from _iterate_tensors("", named)
    if isinstance(vars(module).get("_packed_params"), torch.ScriptObject):
        yield from _unpack(module)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every plain tensor under every name it has; tied weights appear once per name."""
    for path, module in model.named_modules(remove_duplicate=False):
        for name, tensor in own_tensors(module):
            yield (f"{path}.{name}" if path else name), tensor


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of the tensor; an expanded tensor counts what it really stores."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@dataclass(frozen=True)
class Storage:
    """Bytes that a linear layer stores: for its weight (scales and all else but the bias) and for its bias.

    codes: bytes of its largest tensor of integers or 8-bit floats. floats: number of values of its largest tensor of
    floats; as many as weights if these are not packed.
    """

    weight: int
    bias: int
    codes: int
    floats: int

    def is_wider_than(self, bits: int, weights: int) -> bool:
        """Whether ``weights`` weights are stored in more bits than their format has: as floats, or one code per byte.

        Half a bit more is tolerated: ten 3-bit codes are packed in 32 bits, and sizes are rounded up.
        """
        return self.floats >= weights or 8 * self.codes > weights * (bits + 0.5)


def measure_storage(module: nn.Module, seen: Seen) -> Storage:
    """Count what a linear layer stores, its submodules included. Tensors in ``seen`` count nothing; those of the layer
    are added.

    A tensor counts as bias by its name. Raises ModelError for a layer that stores no tensor.
    """
    tensors = dict(named_tensors(module))
    if not tensors:
        _check_countable(type(module).__name__, module)
    fresh = _select_unshared(tensors, seen)
    bias = sum(stored_bytes(tensor) for name, tensor in fresh.items() if _is_bias(name))
    weight = sum(stored_bytes(tensor) for name, tensor in fresh.items() if not _is_bias(name))
    wide = [each for each in tensors.values() if each.is_floating_point() and each.element_size() > 1]
    codes = [each for each in tensors.values() if not (each.is_floating_point() and each.element_size() > 1)]
    return Storage(
        weight, bias, max(map(stored_bytes, codes), default=0), max((each.numel() for each in wide), default=0)
    )


def module_formats(
    model: nn.Module, described: Mapping[str, ModuleFormat], quantization: str = ""
) -> tuple[ModuleFormat, ...]:
    """One ModuleFormat for every module with its own tensors, in the order of ``named_modules``.

    described: formats that backends declared, by module name; they take precedence over inspection. quantization: the
    ``quant_method`` of a prequantized checkpoint. A tensor that several modules share is counted with the first; the
    others get 0 parameters and 0 bytes for it and ``(shared)`` behind their type. Activation ranges do not count as
    weights. Stacked experts have one entry per stack, under the name of its parameter.
    """
    head = cast(Any, model).get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    counted: Seen = {}
    formats = []
    for name, module in model.named_modules():
        if any(parent in described for parent in _parents(name)):
            continue  # A stated format speaks for everything inside its module.
        for own, stack, tensors in _parts(name, module, described):
            stated, fresh = described.get(own), _select_unshared(tensors, counted)
            if stated is None and not tensors:
                _check_countable(name, module)
                continue
            found = stated or _inspect(own, module, stack, tensors, fresh, quantization)
            found = found.model_copy(update={"role": "linear" if stack else _role(module, head)})
            formats.append(found if fresh or not tensors else _mark_shared(found))
    return tuple(formats)


def _parts(
    name: str, module: nn.Module, described: Mapping[str, ModuleFormat]
) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Name, stack (empty for none) and tensors of each entry of a module: its stacks with their biases, and the
    rest."""
    held = named_tensors(module) if name in described else own_tensors(module)
    tensors = {key: tensor for key, tensor in held if key.rpartition(".")[2] != RANGE}
    stacks = () if name in described else stacked_parameters(module)
    for stack in stacks:
        own = [key for key in tensors if key.partition(".")[0] in (stack, f"{stack}_bias")]
        yield f"{name}.{stack}", stack, {key: tensors.pop(key) for key in own}
    if tensors or not stacks:
        yield name, "", tensors


def _role(module: nn.Module, head: nn.Module | None) -> Role:
    if module is head:
        return "head"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if logical_weights(module) is not None:
        return "linear"
    return "norm" if "norm" in type(module).__name__.lower() else "other"


def _inspect(
    name: str,
    module: nn.Module,
    stack: str,
    tensors: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    quantization: str,
) -> ModuleFormat:
    main = max(tensors.values(), key=lambda tensor: tensor.numel())
    weights = cast(Tensor, getattr(module, stack)).numel() if stack else logical_weights(module)
    stored = {key: stored_bytes(tensor) for key, tensor in fresh.items()}
    if weights is None or is_plain_weight(module._parameters.get(stack or "weight"), weights):
        parameters = sum(tensor.numel() for tensor in fresh.values())
        bits, backend = 8.0 * main.element_size(), ""
    else:
        parameters = weights + (tensors["bias"].numel() if "bias" in tensors else 0)
        bits = 8.0 * sum(size for key, size in stored.items() if not _is_bias(key)) / weights
        backend = quantization
    return ModuleFormat(
        module=name,
        type=type(module).__name__,
        parameters=parameters,
        stored_bytes=sum(stored.values()),
        bits_per_weight=bits,
        format=format_of_dtype(main.dtype),
        backend=backend,
    )


def _check_countable(name: str, module: nn.Module) -> None:
    """Raise ModelError for a linear layer whose weight is in no tensor: counting 0 bytes would be wrong."""
    if logical_weights(module) is not None and not any(True for _ in named_tensors(module)):
        raise ModelError(
            f"{name}: {type(module).__name__} stores its weight where its bytes cannot be counted; the "
            "backend that created it must declare its format"
        )


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _mark_shared(stated: ModuleFormat) -> ModuleFormat:
    return stated.model_copy(update={"type": stated.type + SHARED, "parameters": 0, "stored_bytes": 0})


def logical_weights(module: nn.Module) -> int | None:
    """Number of weights of a linear layer by its declared sizes, however it packs them; None for any other module."""
    for names in _SIZES:
        inputs, outputs = (getattr(module, name, None) for name in names)
        if isinstance(inputs, int) and isinstance(outputs, int):
            return inputs * outputs
    return weight_of(module).numel() if isinstance(module, Linear) else None


def is_plain_weight(weight: Tensor | None, weights: int) -> bool:
    """Whether a parameter holds that many weights as floats of 16 bits or more, and not as codes."""
    plain = weight is not None and type(weight) in (nn.Parameter, Tensor) and weight.element_size() > 1
    return plain and weight is not None and weight.is_floating_point() and weight.numel() == weights


def _select_unshared(tensors: Mapping[str, Tensor], seen: Seen) -> dict[str, Tensor]:
    """The tensors whose storage is not shared with another one of these or of ``seen``; all of them are added to
    ``seen``."""
    fresh = {}
    for name, tensor in tensors.items():
        if _place(tensor) not in seen:
            fresh[name] = tensor
        if tensor.numel():
            seen[_place(tensor)] = tensor
    return fresh


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


def _place(tensor: Tensor) -> tuple[int, int]:
    """Storage location of a tensor: two tensors with the same location and size are the same bytes."""
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if hasattr(tensor, "__tensor_flatten__"):
        inner, _ = tensor.__tensor_flatten__()
        for key in sorted(inner):
            yield from _plain(f"{name}.{key}", getattr(tensor, key))
        return
    yield name, tensor.detach()
    yield from _iterate_tensors(f"{name}.", vars(tensor))


def _iterate_tensors(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, Tensor]]:
    """Tensors among the values and, for quantization states, one object deeper at a time."""
    for key in sorted(values, key=str):
        value = values[key]
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value.detach()
        elif (named := _STATES.get(type(value).__name__)) is not None:
            held = vars(value)
            yield from _iterate_tensors(f"{prefix}{key}.", {name: held.get(name) for name in named} if named else held)


def _unpack(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Codes, scales, zero points and bias of a weight that torch packed for its integer kernels (new tensors)."""
    weight, bias = cast(Any, module)._weight_bias()
    if weight.is_quantized:
        each = weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
        scale = weight.q_per_channel_scales() if each else torch.tensor([weight.q_scale()])
        zero = weight.q_per_channel_zero_points() if each else torch.tensor([weight.q_zero_point()])
        # The kernels keep scales as float32 and zero points as int32, whatever unpacking gives.
        yield from {"codes": weight.int_repr(), "scale": scale.float(), "zero_point": zero.int()}.items()
    else:
        yield "weight", weight
    if bias is not None:
        yield "bias", bias.detach()
