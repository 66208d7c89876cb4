"""Weight error: the distance of a variant's effective weights from those of its reference.

A step may move scales between modules (SmoothQuant, AWQ): weights then differ by row and column factors that other
modules undo, and the difference is meaningless. This is detected by the error left after fitting the best factors.

Legend: O output channels, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.modules.effective_weights import effective_weight, has_plain_weight
from harness.modules.experts import stacked_tensor, stacks
from harness.modules.linears import linears

RESCALED = 0.25
"""A weight counts as rescaled if at most this share of the squared error remains after rescaling rows and columns,
relative to the share (O − 1)(I − 1) / OI that rounding errors leave. A weight with one row never counts as rescaled."""


@dataclass(frozen=True)
class ModuleWeightError:
    """‖Ŵ − W‖ / ‖W‖ of one module over the compared share of its inputs; None, with the reason in note, if unknown."""

    relative_error: float | None
    compared: float = 1.0
    note: str = ""


def weight_errors(reference: nn.Module, variant: nn.Module, dtype: torch.dtype) -> dict[str, ModuleWeightError]:
    """The error of every linear layer and every stack of experts of ``reference``, by name.

    dtype: dtype of the models. Modules that cannot be compared carry the reason.
    """
    errors = {}
    with torch.no_grad():
        for name, module in linears(reference):
            try:
                errors[name] = _layer_error(module, variant, name, dtype)
            except ModelError as error:
                errors[name] = ModuleWeightError(None, note=str(error))
        for name, _, _ in stacks(reference):
            errors[name] = _stack_error(reference, variant, name)
    return errors


def _layer_error(module: nn.Module, variant: nn.Module, name: str, dtype: torch.dtype) -> ModuleWeightError:
    try:
        other = variant.get_submodule(name)
    except AttributeError:
        return ModuleWeightError(None, note="the variant has no module of this name")
    if has_plain_weight(module) and has_plain_weight(other) and _is_same(module, other):
        return ModuleWeightError(0.0)
    after = effective_weight(other, dtype)
    before = effective_weight(module, dtype)
    if before.total != after.total or before.weight.shape[0] != after.weight.shape[0]:
        sizes = f"{before.weight.shape[0]} × {before.total}, in the variant {after.weight.shape[0]} × {after.total}"
        return ModuleWeightError(None, note=f"the weight is {sizes}")
    if before.held:
        before_On = before.weight[:, after.inputs.to(before.weight.device)]
    elif len(before.inputs) == len(after.inputs):
        before_On = before.weight
    else:
        return ModuleWeightError(None, note="different inputs of the two sides were probed")
    compared = len(after.inputs) / after.total
    return _error([(before_On, after.weight.to(before_On.device))], compared, after.caveat)


def _is_same(module: nn.Module, other: nn.Module) -> bool:
    """Whether two plain weights are bitwise equal."""
    left, right = module._parameters["weight"], other._parameters["weight"]
    if left is None or right is None or type(module) is not type(other) or left.shape != right.shape:
        return False
    return torch.equal(left, right.to(left.device))


def _stack_error(reference: nn.Module, variant: nn.Module, name: str) -> ModuleWeightError:
    """The error over all matrices of a stack."""
    before, after = (stacked_tensor(model, name) for model in (reference, variant))
    if after is None or before is None or before.shape != after.shape:
        return ModuleWeightError(None, note="the variant has no stack of experts of this name and shape")
    if type(after) not in (Tensor, nn.Parameter):
        plain = getattr(after, "dequantize", None)
        if plain is None:
            return ModuleWeightError(None, note=f"the stack is a {type(after).__name__}, whose values cannot be read")
        after = plain()
    return _error([(b.float(), a.float().to(b.device)) for b, a in zip(before, after, strict=True)], 1.0, "")


def _error(pairs: list[tuple[Tensor, Tensor]], compared: float, caveat: str) -> ModuleWeightError:
    """The error over all pairs of weights [O, I]."""
    lost = sum(_square(after - before) for before, after in pairs)
    size = sum(_square(before) for before, _ in pairs)
    if not size:
        return ModuleWeightError(None, compared, "the weight of the reference is zero everywhere")
    if not (lost < float("inf")):
        return ModuleWeightError(None, compared, "the weight holds NaN or infinity")
    if (
        lost
        and sum(_unexplained_error(before, after) for before, after in pairs)
        < RESCALED * _unexplained_share(pairs) * lost
    ):
        note = (
            "rows or columns were rescaled (a scale was folded into or out of other modules), so the weights cannot be "
            "compared; compare outputs instead (layers.relative_error)"
        )
        return ModuleWeightError(None, compared, note)
    return ModuleWeightError(float((lost / size) ** 0.5), compared, caveat)


def _unexplained_share(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The share of the error left after fitting the best row and column factors, relative to independent errors."""
    rows, columns = pairs[0][0].shape
    return (rows - 1) * (columns - 1) / (rows * columns)


def _unexplained_error(before_OI: Tensor, after_OI: Tensor) -> float:
    """The squared error left after scaling columns, then rows, of ``after`` to fit ``before`` best."""
    fitted = after_OI
    for axis in (0, 1, 0):
        size = fitted.square().sum(axis, keepdim=True)
        fitted = fitted * ((before_OI * fitted).sum(axis, keepdim=True) / size.clamp(min=1e-30))
    return _square(fitted - before_OI)


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())
