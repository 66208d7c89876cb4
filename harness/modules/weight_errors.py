"""How far the weights of a variant are from those of its reference, as its modules compute with them.

A step may move scales between modules (SmoothQuant, AWQ): their weights then differ by factors of rows and columns that
others undo, and the difference says nothing. It is recognized by what is left once the best factors are taken out.

Legend: O output channels, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.modules.effective_weights import effective_weight, is_held
from harness.modules.experts import stacked_tensor, stacks
from harness.modules.linears import linears

RESCALED = 0.25
"""Share of a squared error that may be left once rows and columns are rescaled, for the weight to count as rescaled; of
what rounding leaves, which is (O − 1)(I − 1) / OI. A weight of one row is never taken for rescaled."""


@dataclass(frozen=True)
class WeightError:
    """‖Ŵ − W‖ / ‖W‖ of one module, over the compared share of its inputs; None with the reason in note."""

    relative_error: float | None
    compared: float = 1.0
    note: str = ""


def weight_errors(reference: nn.Module, variant: nn.Module, dtype: torch.dtype) -> dict[str, WeightError]:
    """The error of every linear layer of ``reference``, and of every stack of experts, by name.

    dtype: that of the models. What cannot be compared has the reason.
    """
    found = {}
    with torch.no_grad():
        for name, module in linears(reference):
            try:
                found[name] = _of_layer(module, variant, name, dtype)
            except ModelError as error:
                found[name] = WeightError(None, note=str(error))
        for name, _, _ in stacks(reference):
            found[name] = _of_stack(reference, variant, name)
    return found


def _of_layer(module: nn.Module, variant: nn.Module, name: str, dtype: torch.dtype) -> WeightError:
    try:
        other = variant.get_submodule(name)
    except AttributeError:
        return WeightError(None, note="the variant has no module of this name")
    if is_held(module) and is_held(other) and _same(module, other):
        return WeightError(0.0)
    after = effective_weight(other, dtype)
    before = effective_weight(module, dtype)
    if before.total != after.total or before.weight.shape[0] != after.weight.shape[0]:
        sizes = f"{before.weight.shape[0]} × {before.total}, in the variant {after.weight.shape[0]} × {after.total}"
        return WeightError(None, note=f"the weight is {sizes}")
    if before.held:
        before_On = before.weight[:, after.inputs.to(before.weight.device)]
    elif len(before.inputs) == len(after.inputs):
        before_On = before.weight
    else:
        return WeightError(None, note="different inputs of the two sides were tried")
    compared = len(after.inputs) / after.total
    return _error([(before_On, after.weight.to(before_On.device))], compared, after.caveat)


def _same(module: nn.Module, other: nn.Module) -> bool:
    """Whether two plain weights are the same bytes."""
    left, right = module._parameters["weight"], other._parameters["weight"]
    if left is None or right is None or type(module) is not type(other) or left.shape != right.shape:
        return False
    return torch.equal(left, right.to(left.device))


def _of_stack(reference: nn.Module, variant: nn.Module, name: str) -> WeightError:
    """The error of all matrices of a stack together."""
    before, after = (stacked_tensor(model, name) for model in (reference, variant))
    if after is None or before is None or before.shape != after.shape:
        return WeightError(None, note="the variant has no stack of experts of this name and shape")
    if type(after) not in (Tensor, nn.Parameter):
        plain = getattr(after, "dequantize", None)
        if plain is None:
            return WeightError(None, note=f"the stack is a {type(after).__name__}, whose values are not known")
        after = plain()
    return _error([(b.float(), a.float().to(b.device)) for b, a in zip(before, after, strict=True)], 1.0, "")


def _error(pairs: list[tuple[Tensor, Tensor]], compared: float, caveat: str) -> WeightError:
    """The error over all pairs of weights [O, I] together."""
    lost = sum(_square(after - before) for before, after in pairs)
    size = sum(_square(before) for before, _ in pairs)
    if not size:
        return WeightError(None, compared, "the weight of the reference is zero everywhere")
    if not (lost < float("inf")):
        return WeightError(None, compared, "the weight holds NaN or infinity")
    if lost and sum(_unexplained(before, after) for before, after in pairs) < RESCALED * _left(pairs) * lost:
        note = (
            "rows or columns were rescaled (a scale was folded into or out of other modules), so that the weights "
            "cannot be compared; compare outputs (layers.relative_error)"
        )
        return WeightError(None, compared, note)
    return WeightError(float((lost / size) ** 0.5), compared, caveat)


def _left(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The share of independent errors that is left once the best factors of rows and columns are taken out."""
    rows, columns = pairs[0][0].shape
    return (rows - 1) * (columns - 1) / (rows * columns)


def _unexplained(before_OI: Tensor, after_OI: Tensor) -> float:
    """The squared error that is left once columns, then rows, of ``after`` are scaled to fit ``before`` best."""
    fitted = after_OI
    for axis in (0, 1, 0):
        size = fitted.square().sum(axis, keepdim=True)
        fitted = fitted * ((before_OI * fitted).sum(axis, keepdim=True) / size.clamp(min=1e-30))
    return _square(fitted - before_OI)


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())
