"""What a loaded model is made of: the tensors each module keeps, and how its weight is stored.

``state_dict()`` is never called here: some quantizing libraries rewrite the live model when it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import ModelError
from harness.models.activations import RANGE
from harness.models.linears import Linear, weight_of
from harness.records import ModuleFormat
from harness.records.result import Role

SHARED = " (shared)"
"""Ends the type of a module whose weight another module already counts, a tied head for instance."""


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and plain tensor of everything that ``module`` itself keeps: parameters and persistent buffers.

    Tensor subclasses are taken apart into the tensors they hold, and so are scales that libraries hang on a
    parameter or into a dictionary of the module (bitsandbytes, hqq).
    """
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield from _plain(name, tensor)
    for name, value in vars(module).items():
        if not name.startswith("_") and isinstance(value, dict):
            yield from _held(f"{name}.", value)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every plain tensor under every name it has; tied weights appear once for each name."""
    for path, module in model.named_modules(remove_duplicate=False):
        for name, tensor in own_tensors(module):
            yield (f"{path}.{name}" if path else name), tensor


def stored_bytes(tensor: Tensor) -> int:
    """Bytes the tensor occupies; an expanded tensor counts what it really stores."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def module_formats(
    model: nn.Module, described: Mapping[str, ModuleFormat], quantization: str = ""
) -> tuple[ModuleFormat, ...]:
    """One ModuleFormat for every module that keeps tensors of its own, in the order of ``named_modules``.

    described: formats that backends stated, by module name; they win over inspection. quantization: the
    ``quant_method`` of a checkpoint that came quantized. A tensor that several modules share is counted with
    the first; the others get 0 parameters and 0 bytes for it and ``(shared)`` behind their type. Ranges of
    activations are no weights.
    """
    head = cast(Any, model).get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    counted: set[tuple[int, int]] = set()
    formats = []
    for name, module in model.named_modules():
        if any(parent in described for parent in _parents(name)):
            continue  # A stated format speaks for everything inside its module.
        stated = described.get(name)
        kept = own_tensors(module) if stated is None else named_tensors(module)
        tensors = {key: tensor for key, tensor in kept if key.rpartition(".")[2] != RANGE}
        fresh = {key: tensor for key, tensor in tensors.items() if _place(tensor) not in counted}
        counted |= {_place(tensor) for tensor in tensors.values() if tensor.numel()}
        if stated is None and not tensors:
            _check_countable(name, module)
            continue
        found = stated or _inspected(name, module, tensors, fresh, quantization)
        found = found.model_copy(update={"role": _role(module, head)})
        formats.append(found if fresh or not tensors else _shared(found))
    return tuple(formats)


def _role(module: nn.Module, head: nn.Module | None) -> Role:
    if module is head:
        return "head"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if logical_weights(module) is not None:
        return "linear"
    return "norm" if "norm" in type(module).__name__.lower() else "other"


def _inspected(
    name: str,
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    quantization: str,
) -> ModuleFormat:
    main = max(tensors.values(), key=lambda tensor: tensor.numel())
    weights = logical_weights(module)
    stored = {key: stored_bytes(tensor) for key, tensor in fresh.items()}
    if weights is None or _is_plain_weight(module, weights):
        parameters = sum(tensor.numel() for tensor in fresh.values())
        bits, backend = 8.0 * main.element_size(), ""
    else:
        parameters = weights + (tensors["bias"].numel() if "bias" in tensors else 0)
        bits = 8.0 * sum(size for key, size in stored.items() if key != "bias") / weights
        backend = quantization
    return ModuleFormat(
        module=name,
        type=type(module).__name__,
        parameters=parameters,
        stored_bytes=sum(stored.values()),
        bits_per_weight=bits,
        format=str(main.dtype).removeprefix("torch."),
        backend=backend,
    )


def _check_countable(name: str, module: nn.Module) -> None:
    """Raise ModelError for a linear layer that keeps its weight in no tensor: 0 bytes would be false."""
    if logical_weights(module) is not None and not any(True for _ in named_tensors(module)):
        raise ModelError(
            f"{name}: {type(module).__name__} keeps its weight where its bytes cannot be counted; the "
            "backend that made it has to describe it"
        )


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _shared(stated: ModuleFormat) -> ModuleFormat:
    return stated.model_copy(update={"type": stated.type + SHARED, "parameters": 0, "stored_bytes": 0})


def logical_weights(module: nn.Module) -> int | None:
    """Weights of a linear layer by its declared sizes, however it packs them; None for any other module."""
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int):
        return inputs * outputs
    return weight_of(module).numel() if isinstance(module, Linear) else None


def _is_plain_weight(module: nn.Module, weights: int) -> bool:
    weight = module._parameters.get("weight")
    plain = weight is not None and type(weight) in (nn.Parameter, Tensor)
    return plain and weight is not None and weight.is_floating_point() and weight.numel() == weights


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor lies: two tensors at one place with one size are the same bytes."""
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if hasattr(tensor, "__tensor_flatten__"):
        inner, _ = tensor.__tensor_flatten__()
        for key in sorted(inner):
            yield from _plain(f"{name}.{key}", getattr(tensor, key))
        return
    yield name, tensor.detach()
    yield from _held(f"{name}.", vars(tensor))


def _held(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, Tensor]]:
    """Tensors among the values and, for quantization states, one object deeper at a time."""
    for key in sorted(values, key=str):
        value = values[key]
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value.detach()
        elif type(value).__name__ == "QuantState":
            yield from _held(f"{prefix}{key}.", vars(value))
