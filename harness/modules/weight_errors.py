"""Weight error: the distance of a variant's effective weights from those of its reference.

A step may move scales between modules (SmoothQuant, AWQ): weights then differ by row and column factors that other
modules undo, and the difference is meaningless. This is detected by the error left after fitting the best factors,
and by whether another module has the inverse ones (see ``harness.modules.folded_factors``).

Legend: O output channels, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.modules.effective_weights import effective_weight, has_plain_weight
from harness.modules.experts import stacked_tensor, stacks
from harness.modules.folded_factors import Factors, fit_factors, keep_undone
from harness.modules.layer_pairs import SAME_NAMES, LayerPairs
from harness.modules.linears import linears
from harness.numerics.formats import CHUNK_VALUES, format_of, quantize
from harness.records import NumberFormat

RESCALED = 0.25
"""A weight counts as rescaled if at most this share of the squared error remains after rescaling rows and columns,
relative to the share (O − 1)(I − 1) / OI that rounding errors leave. A weight with one row never counts as rescaled."""


UNDONE = (
    "rows or columns were rescaled (a scale was folded into or out of other modules), so the weights cannot be "
    "compared; compare outputs instead (layers.relative_error)"
)
NOT_UNDONE = "rows or columns differ by factors that no other module undoes"
Pairs = list[tuple[Tensor, Tensor]]
"""Weights [O, I] of the reference and the variant: one of a layer, those of all experts of a stack."""


@dataclass(frozen=True)
class ModuleWeightError:
    """‖Ŵ − W‖ / ‖W‖ of one module over the compared share of its inputs; None, with the reason in note, if unknown.

    rounding_error: the same after undoing the factors that other modules undo, None if unknown. explained: the error of
    rounding the reference's weight to the nearest value of the declared format (of integers of as many bits where its
    values are not known); None without a format. experts: relative_error of each matrix of a stack, in order.
    """

    relative_error: float | None
    compared: float = 1.0
    note: str = ""
    rounding_error: float | None = None
    explained: float | None = None
    experts: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class _Weights:
    """The weights of a module on both sides, and what was compared of them."""

    pairs: Pairs
    compared: float = 1.0
    caveat: str = ""


def weight_errors(
    reference: nn.Module,
    variant: nn.Module,
    dtype: torch.dtype,
    pairs: LayerPairs = SAME_NAMES,
    formats: Mapping[str, NumberFormat] | None = None,
) -> dict[str, ModuleWeightError]:
    """The error of every linear layer and every stack of experts of ``reference``, by name.

    dtype: dtype of the models. pairs: the counterparts of modules. formats: those that the variant declares, by its
    names. Modules that cannot be compared carry the reason.
    """
    errors: dict[str, ModuleWeightError] = {}
    factors: dict[str, Factors] = {}
    names = [*(name for name, _ in linears(reference)), *(name for name, _, _ in stacks(reference))]
    with torch.no_grad():
        for name in names:
            read = _read(reference, variant, name, pairs, dtype)
            if isinstance(read, ModuleWeightError):
                errors[name] = read
                continue
            size = _sum_squares(read.pairs)
            errors[name] = _error(read, size)
            if errors[name].note == UNDONE and len(read.pairs) == 1:
                factors[name] = fit_factors(*read.pairs[0])
            if form := (formats or {}).get(pairs.find_in_variant(name) or ""):
                errors[name] = replace(errors[name], explained=_explain(read.pairs, form, size))
        undone = keep_undone(factors, reference, variant, pairs)
        for name in factors:
            again = _read(reference, variant, name, pairs, dtype)
            if isinstance(again, _Weights):
                errors[name] = _undo(errors[name], again, undone.get(name))
    return errors


def _read(
    reference: nn.Module, variant: nn.Module, name: str, pairs: LayerPairs, dtype: torch.dtype
) -> _Weights | ModuleWeightError:
    """The weights of a module, or the reason why they cannot be compared."""
    other = pairs.find_in_variant(name)
    if other is None:
        return ModuleWeightError(None, note=pairs.reason)
    try:
        module = reference.get_submodule(name)
    except AttributeError:
        return _read_stack(reference, variant, name, other)
    try:
        return _read_layer(module, variant, other, dtype)
    except ModelError as error:
        return ModuleWeightError(None, note=str(error))


def _read_layer(module: nn.Module, variant: nn.Module, name: str, dtype: torch.dtype) -> _Weights | ModuleWeightError:
    try:
        other = variant.get_submodule(name)
    except AttributeError:
        return ModuleWeightError(None, note="the variant has no module of this name")
    if has_plain_weight(module) and has_plain_weight(other) and _is_same(module, other):
        return ModuleWeightError(0.0, rounding_error=0.0)
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
    return _Weights([(before_On, after.weight.to(before_On.device))], compared, after.caveat)


def _is_same(module: nn.Module, other: nn.Module) -> bool:
    """Whether two plain weights are bitwise equal."""
    left, right = module._parameters["weight"], other._parameters["weight"]
    if left is None or right is None or type(module) is not type(other) or left.shape != right.shape:
        return False
    return torch.equal(left, right.to(left.device))


def _read_stack(reference: nn.Module, variant: nn.Module, name: str, other: str) -> _Weights | ModuleWeightError:
    """All matrices of a stack."""
    before, after = stacked_tensor(reference, name), stacked_tensor(variant, other)
    if after is None or before is None or before.shape != after.shape:
        return ModuleWeightError(None, note="the variant has no stack of experts of this name and shape")
    if type(after) not in (Tensor, nn.Parameter):
        plain = getattr(after, "dequantize", None)
        if plain is None:
            return ModuleWeightError(None, note=f"the stack is a {type(after).__name__}, whose values cannot be read")
        after = plain()
    return _Weights([(b.float(), a.float().to(b.device)) for b, a in zip(before, after, strict=True)])


def _error(weights: _Weights, size: float) -> ModuleWeightError:
    """The error over all pairs of weights. size: squared norm of the reference's."""
    lost = _sum_distances(weights.pairs)
    if not size:
        return ModuleWeightError(None, weights.compared, "the weight of the reference is zero everywhere")
    if not (lost < float("inf")):
        return ModuleWeightError(None, weights.compared, "the weight holds NaN or infinity")
    left = sum(_distance(b, a, fit_factors(b, a)) for b, a in weights.pairs) if lost else 0.0
    if lost and left < RESCALED * _left_share(weights.pairs) * lost:
        return ModuleWeightError(None, weights.compared, UNDONE, rounding_error=(left / size) ** 0.5)
    found = (lost / size) ** 0.5
    experts = tuple(_share(*_sums([pair])) for pair in weights.pairs) if len(weights.pairs) > 1 else ()
    return ModuleWeightError(found, weights.compared, weights.caveat, rounding_error=found, experts=experts)


def _share(lost: float, size: float) -> float | None:
    return (lost / size) ** 0.5 if size else None


def _undo(found: ModuleWeightError, weights: _Weights, undone: Factors | None) -> ModuleWeightError:
    """The error of a rescaled weight, given the factors that other modules undo; None: they undo nothing."""
    pairs = weights.pairs
    if undone is not None:
        # What undoes factors tells them up to a constant.
        pairs = [(before, _scale_to(before, undone.apply(after))) for before, after in pairs]
    lost, size = _sums(pairs)
    error = (lost / size) ** 0.5
    if undone is None:
        return replace(found, relative_error=error, rounding_error=error, note=NOT_UNDONE)
    return replace(found, rounding_error=error)


def _scale_to(before: Tensor, after: Tensor) -> Tensor:
    return after * ((before * after).sum() / after.square().sum().clamp(min=1e-30))


def _explain(pairs: Pairs, form: NumberFormat, size: float) -> float | None:
    """‖Q(W) − W‖ / ‖W‖ for rounding to the nearest value of a format; None if neither it nor integers can be used.

    size: ‖W‖².
    """
    integers = NumberFormat.model_construct(
        **form.model_dump() | {"type": "int", "element": "", "symmetric": True, "scales": "float"}
    )
    for each in (form, integers, integers.model_copy(update={"granularity": "channel", "group_size": None})):
        try:
            known = format_of(each)
            lost = _sum_distances([(before, quantize(before, known).values) for before, _ in pairs])
        except (KeyError, ValueError):
            continue
        return (lost / size) ** 0.5 if size else None
    return None


def _left_share(pairs: Pairs) -> float:
    """The share of the error left after fitting the best row and column factors, relative to independent errors."""
    rows, columns = pairs[0][0].shape
    return (rows - 1) * (columns - 1) / (rows * columns)


def _sums(pairs: Pairs) -> tuple[float, float]:
    """Squared norms of the differences and of the reference's weights."""
    return _sum_distances(pairs), _sum_squares(pairs)


def _sum_distances(pairs: Pairs) -> float:
    return sum(_distance(before, after) for before, after in pairs)


def _sum_squares(pairs: Pairs) -> float:
    """Squared norm of the reference's weights."""
    return sum(_square(before) for before, _ in pairs)


def _distance(before_OI: Tensor, after_OI: Tensor, factors: Factors | None = None) -> float:
    """Squared norm of the difference, once the factors are undone."""
    total = 0.0
    for some in _pieces(before_OI):
        after = (
            after_OI[some] if factors is None else Factors(factors.rows[some], factors.columns).apply(after_OI[some])
        )
        total += float((after - before_OI[some]).double().square().sum())
    return total


def _square(values_OI: Tensor) -> float:
    return sum(float(values_OI[some].double().square().sum()) for some in _pieces(values_OI))


def _pieces(values_OI: Tensor) -> Iterator[slice]:
    """Ranges of rows whose float64 copies stay in the cache of a core; on other devices all rows."""
    rows = max(1, CHUNK_VALUES // values_OI.shape[1]) if values_OI.is_cpu else len(values_OI)
    return (slice(start, start + rows) for start in range(0, len(values_OI), rows))
