"""Real or simulated kernels: inspects what the modules of a compressed model store and multiply.

stored in more bits than the format has ─▶ simulated, whatever the step declared
packed, inputs are not rounded          ─▶ weight-only: dequantized in the kernel, wherever that happens
packed, inputs rounded, floats seen     ─▶ the same: codes become floats before the product
packed, inputs rounded, no floats seen  ─▶ the product reads the codes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

from harness.modules.effective_weights import copy_module
from harness.modules.experts import stacked_parameters
from harness.modules.gemm_kind import multiplies_floats
from harness.modules.inspection import logical_weights, measure_storage, named_tensors
from harness.records import ModuleFormat, Note


def inspect_kernels(model: nn.Module, modules: Sequence[ModuleFormat]) -> tuple[ModuleFormat, ...]:
    """The formats corrected by what their modules do; those declared simulated stay so.

    A format is only ever corrected to the more cautious side: a module that stores more bits than the format has counts
    as simulated. gemm_kind is filled in for packed linear layers.
    """
    return tuple(_inspect(model, stated) if _claims_kernel(stated) else stated for stated in modules)


def note_unpacked(before: Sequence[ModuleFormat], after: Sequence[ModuleFormat]) -> Iterator[Note]:
    """A warning if modules are declared as packed but are not."""
    pairs = zip(before, after, strict=True)
    wrong = [old for old, new in pairs if old.kernel == "real" and new.kernel == "simulated"]
    if wrong:
        text = (
            f"{len(wrong)} modules are declared as {wrong[0].format.name}, but store more bits per weight, "
            f"first {wrong[0].module}: they count as simulated"
        )
        yield Note(topic="kernel", text=text, level="warn")


def note_skipped_experts(name: str, modules: Sequence[ModuleFormat], model: nn.Module) -> Iterator[Note]:
    """A warning if a model is compressed but its stacked experts, which hold most of its weights, are not.

    Most libraries compress linear layers, and a stack of experts is not one.
    """
    stacks = {f"{path}.{each}" if path else each for path, m in model.named_modules() for each in stacked_parameters(m)}
    total = sum(module.parameters for module in modules)
    for what, done in (("weights", _has_weights), ("inputs", _has_inputs)):
        left = [module for module in modules if module.module in stacks and not done(module)]
        if left and any(done(module) for module in modules):
            share = sum(module.parameters for module in left) / max(total, 1)
            text = (
                f"{name}: the {what} of {len(left)} stacks of experts, with {share:.0%} of all parameters, remain in "
                f"full precision ({left[0].module} first): no step compressed them"
            )
            yield Note(topic="experts", text=text, level="warn")


def _has_weights(module: ModuleFormat) -> bool:
    return module.compressed


def _has_inputs(module: ModuleFormat) -> bool:
    return module.activations is not None


def _claims_kernel(stated: ModuleFormat) -> bool:
    """Whether the declaration can be verified: a compressed weight of known bits with a real kernel.

    Of a float without scales only the dtype of its tensor is known.
    """
    dtype_alone = stated.format.type == "float" and stated.format.granularity == "none"
    return stated.kernel == "real" and bool(stated.backend) and bool(stated.format.bits) and not dtype_alone


def _inspect(model: nn.Module, stated: ModuleFormat) -> ModuleFormat:
    try:
        module = model.get_submodule(stated.module)
    except AttributeError:
        return stated  # A stack of experts: its entry was made by inspection or by a step that holds floats.
    weights = logical_weights(module)
    if weights is None or not any(True for _ in named_tensors(module)):
        return stated
    if measure_storage(module, {}).is_wider_than(stated.format.bits or 0, weights):
        return stated.model_copy(update={"kernel": "simulated"})
    return stated.model_copy(update={"gemm_kind": _gemm_kind(module) if stated.activations else "floats"})


def _gemm_kind(module: nn.Module) -> Literal["", "floats", "codes"]:
    """The GEMM kind of a packed layer that is declared to round its inputs.

    Operators of a library may hide floats; if outputs are linear in inputs, no input was rounded. Unknown for a layer
    that cannot be called alone.
    """
    try:
        layer = copy_module(module)
        return "floats" if multiplies_floats(layer) or _is_linear(layer) else "codes"
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
        return ""


@torch.no_grad()
def _is_linear(layer: nn.Module) -> bool:
    """Whether f(x + y) − f(x) − f(y) + f(0) is only float32 rounding; False if that cannot be determined."""
    chance, inputs = torch.Generator().manual_seed(0), int(cast(Any, layer).in_features)
    device = next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
    x_NI, y_NI = torch.randn(2, 32, inputs, generator=chance).to(device)
    whole, one, other, zero = (layer(rows) for rows in (x_NI + y_NI, x_NI, y_NI, torch.zeros_like(x_NI)))
    if whole.dtype != torch.float32:
        return False
    return bool((whole - one - other + zero).norm() <= 1e-4 * whole.norm())
