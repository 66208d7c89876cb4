"""Real or simulated: what the modules of a compressed model keep and what they multiply, seen in the model itself.

kept in more bits than the format has  ─▶ simulated, whatever a step said
packed, inputs are not rounded         ─▶ weight-only: dequantized in the kernel, wherever that happens
packed, inputs rounded, floats seen    ─▶ the same: codes become floats before the product
packed, inputs rounded, no floats seen ─▶ the product reads the codes
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

from harness.modules.effective_weights import copy_module
from harness.modules.experts import stacked_parameters
from harness.modules.gemm_kind import multiplies_floats
from harness.modules.inspection import kept, logical_weights, named_tensors
from harness.records import ModuleFormat, Note

SLACK = 0.5
"""Bits a weight that the codes of a packed weight may take beyond their format (padding, say)."""


def looked_at(model: nn.Module, modules: Sequence[ModuleFormat]) -> tuple[ModuleFormat, ...]:
    """The formats with what their modules were seen to do; those called simulated stay so.

    A format is only ever corrected to the more cautious: a module that keeps more bits than the format has is called
    simulated. product is filled in for linear layers that are packed.
    """
    return tuple(_looked_at(model, stated) if _claims(stated) else stated for stated in modules)


def unpacked_notes(before: Sequence[ModuleFormat], after: Sequence[ModuleFormat]) -> Iterator[Note]:
    """A warning where modules were said to be packed and are not."""
    pairs = zip(before, after, strict=True)
    wrong = [old for old, new in pairs if old.kernel == "real" and new.kernel == "simulated"]
    if wrong:
        text = (
            f"{len(wrong)} modules are said to be {wrong[0].format}, but keep more bits a weight than that, "
            f"{wrong[0].module} first: they are called simulated"
        )
        yield Note(topic="kernel", text=text, level="warn")


def left_out(name: str, modules: Sequence[ModuleFormat], model: nn.Module) -> Iterator[Note]:
    """A warning where a model is compressed and stacked experts, which hold most of its weights, are not.

    Most libraries take linear layers, and a stack of experts is none.
    """
    stacks = {f"{path}.{each}" if path else each for path, m in model.named_modules() for each in stacked_parameters(m)}
    total = sum(module.parameters for module in modules)
    for what, done in (("weights", _has_weights), ("inputs", _has_inputs)):
        left = [module for module in modules if module.module in stacks and not done(module)]
        if left and any(done(module) for module in modules):
            share = sum(module.parameters for module in left) / max(total, 1)
            text = (
                f"{name}: the {what} of {len(left)} stacks of experts, with {share:.0%} of all parameters, are left in "
                f"full precision ({left[0].module} first): no step took them"
            )
            yield Note(topic="experts", text=text, level="warn")


def _has_weights(module: ModuleFormat) -> bool:
    return bool(module.backend) or module.granularity != "none"


def _has_inputs(module: ModuleFormat) -> bool:
    return bool(module.activations)


def _claims(stated: ModuleFormat) -> bool:
    """Whether something is claimed that can be looked at: a compressed weight with a real kernel."""
    return stated.kernel == "real" and bool(stated.backend) and bool(_bits(stated.format))


def _looked_at(model: nn.Module, stated: ModuleFormat) -> ModuleFormat:
    try:
        module = model.get_submodule(stated.module)
    except AttributeError:
        return stated  # A stack of experts: its entry was made by inspection or by a step that holds floats.
    weights = logical_weights(module)
    if weights is None or not any(True for _ in named_tensors(module)):
        return stated
    held = kept(module, {})
    if held.floats >= weights or 8 * held.codes > weights * (_bits(stated.format) + SLACK):
        return stated.model_copy(update={"kernel": "simulated"})
    return stated.model_copy(update={"product": _product(module) if stated.activations else "floats"})


def _product(module: nn.Module) -> Literal["", "floats", "codes"]:
    """What a packed layer multiplies that is said to round its inputs.

    Operators of a library may hide floats; where outputs are linear in inputs, no input was rounded. Nothing is said of
    a layer that cannot be called by itself.
    """
    try:
        layer = copy_module(module)
        return "floats" if multiplies_floats(layer) or _is_linear(layer) else "codes"
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
        return ""


@torch.no_grad()
def _is_linear(layer: nn.Module) -> bool:
    """Whether f(x + y) − f(x) − f(y) + f(0) is nothing but the rounding of float32; False where that cannot be told."""
    chance, inputs = torch.Generator().manual_seed(0), int(cast(Any, layer).in_features)
    device = next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
    x_NI, y_NI = torch.randn(2, 32, inputs, generator=chance).to(device)
    whole, one, other, zero = (layer(rows) for rows in (x_NI + y_NI, x_NI, y_NI, torch.zeros_like(x_NI)))
    if whole.dtype != torch.float32:
        return False
    return bool((whole - one - other + zero).norm() <= 1e-4 * whole.norm())


def _bits(format_name: str) -> int:
    """Bits of one code of a format by its name, 0 for one that does not say: 4 of "nf4", 8 of "fp8_e4m3"."""
    found = re.search(r"\d+", format_name)
    return int(found[0]) if found and not format_name.startswith(("float", "bfloat")) else 0
