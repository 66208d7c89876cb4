"""The effective weight of a linear layer: what it multiplies inputs by, however it is stored.

Libraries keep the original in ``.weight`` and round it at every call, keep codes there, or nothing. So the layer is
applied to unit vectors: W = (f(e₁) − f(0), f(e₂) − f(0), …). The stored tensor is used directly only if the layer's
class is known and its weight is a plain floating-point tensor.

The layer is applied in a copy, since some libraries rearrange their weights in the first call, and without hooks,
since these round inputs. A layer that rounds its inputs itself gets one-hot rows, which a per-token scale represents
exactly. Its outputs for random inputs are compared with the measured weight, and a deviation is reported as a caveat.

Legend: O output channels, I inputs, n probed inputs, N rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.errors import ModelError
from harness.modules.experts import ExpertMatrix
from harness.modules.linears import weight_of

MOST_INPUTS = 1024
"""Inputs probed when a layer has to be applied; a layer with more is sampled at equal distances."""
ROWS = 256
"""Inputs probed per call."""
_KNOWN = (nn.Linear, Conv1D, ExpertMatrix)


@dataclass(frozen=True)
class EffectiveWeight:
    """Weight and bias with which a layer computes.

    weight: [O, n] for the probed inputs, in float32 (float64 stays float64). inputs: their indices [n], int64. total:
    number of inputs of the layer. held: whether the weight is a stored plain tensor rather than measured by applying
    the layer. caveat: a sentence on what else the layer does, or "".
    """

    weight: Tensor
    bias: Tensor | None
    inputs: Tensor
    total: int
    held: bool
    caveat: str = ""


def has_plain_weight(module: nn.Module) -> bool:
    """Whether the layer is of a known class, not patched, and multiplies by a plain tensor of 16 or more bits."""
    weight = module._parameters.get("weight")
    plain = weight is not None and type(weight) in (nn.Parameter, Tensor)
    if not plain or weight is None or type(module) not in _KNOWN or "forward" in vars(module):
        return False
    return weight.dim() == 2 and weight.is_floating_point() and weight.element_size() > 1


def effective_weight(module: nn.Module, dtype: torch.dtype = torch.float32, most: int = MOST_INPUTS) -> EffectiveWeight:
    """The effective weight and bias of a linear layer.

    dtype: dtype of the layer's inputs in its model. most: maximum number of inputs to probe if the layer has to be
    applied. Raises ModelError for a layer that cannot be called on its own or returns NaN or infinity.
    """
    if has_plain_weight(module):
        known: Any = module
        weight_OI = weight_of(known)
        bias = None if known.bias is None else known.bias.detach()
        total = weight_OI.shape[1]
        return EffectiveWeight(_widen(weight_OI), bias, torch.arange(total), total, held=True)
    total = _count_inputs(module)
    inputs = torch.arange(total)[:: max(1, -(-total // most))]
    try:
        return _measure_weight(module, dtype, inputs, total)
    except ModelError:
        raise
    except Exception as error:  # A library may raise anything.
        raise ModelError(
            f"{type(module).__name__} cannot be called on its own: {type(error).__name__}: {error}"
        ) from error


def copy_module(module: nn.Module) -> nn.Module:
    """A copy of a layer for a standalone call, which then modifies only the copy's plain tensors.

    Tensor subclasses made of other tensors are shared, since some of them cannot be copied.
    """
    tensors = (*module.parameters(), *module.buffers())
    shared = {id(each): each for each in tensors if hasattr(each, "__tensor_flatten__")}
    return copy.deepcopy(module, dict[int, Any](shared))


@torch.no_grad()
def _measure_weight(module: nn.Module, dtype: torch.dtype, inputs: Tensor, total: int) -> EffectiveWeight:
    layer: Any = copy_module(module)
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))

    which = _find_linear_output(lambda x_NI: layer.forward(x_NI.to(device, dtype)), total)

    def apply(x_NI: Tensor) -> Tensor:
        output = layer.forward(x_NI.to(device, dtype))
        output_NO: Tensor = output if which is None else output[which]
        if not bool(torch.isfinite(output_NO).all()):
            raise ModelError(f"{type(module).__name__} returns NaN or infinity for finite inputs")
        return _widen(output_NO)

    bias_O = apply(torch.zeros(1, total))[0]
    if isinstance(layer._parameters.get("bias"), Tensor):
        # In 16 bits, adding the bias would round away most of a small weight.
        layer.bias.zero_()
    zero_O = apply(torch.zeros(1, total))[0]
    pieces = [apply(_one_hot(some, total)) - zero_O for some in torch.split(inputs, ROWS)]
    weight_On = torch.cat(pieces).T
    chance = torch.Generator().manual_seed(0)
    x_NI = torch.zeros(4, total)
    x_NI[:, inputs] = torch.randn(4, len(inputs), generator=chance)
    expected_NO = x_NI[:, inputs].to(dtype).to(weight_On) @ weight_On.T
    error = float((apply(x_NI) - zero_O - expected_NO).norm() / expected_NO.norm().clamp(min=1e-30))
    return EffectiveWeight(
        weight_On, bias_O if bool(bias_O.any()) else None, inputs, total, False, _caveat(error, dtype)
    )


def _find_linear_output(call: Callable[[Tensor], Any], total: int) -> int | None:
    """Of a layer that returns several tensors (a router: scores and logits), the index of the first that doubles with
    the input; None for a layer that returns one. Raises ModelError if none of several does."""
    x_1I = torch.randn(1, total, generator=torch.Generator().manual_seed(0))
    zero = call(torch.zeros(1, total))
    if isinstance(zero, Tensor):
        return None
    for index, (at_zero, once, twice) in enumerate(zip(zero, call(x_1I), call(2 * x_1I), strict=True)):
        if torch.allclose(twice - at_zero, 2 * (once - at_zero), rtol=1e-2, atol=1e-6):
            return index
    raise ModelError("none of its outputs is linear in its input")


def _caveat(error: float, dtype: torch.dtype) -> str:
    """The caveat for a layer whose outputs for random inputs deviate from the weight's by this relative error."""
    if error <= (1e-3 if dtype in (torch.float32, torch.float64) else 2e-2):
        return ""
    return (
        f"for random inputs its outputs differ by {error:.2%} from those of this weight: it rounds its inputs too, "
        "which the weight error does not include"
    )


def _count_inputs(module: nn.Module) -> int:
    for name in ("in_features", "infeatures", "nx"):
        if isinstance(width := getattr(module, name, None), int):
            return width
    raise ModelError(f"{type(module).__name__} has no attribute that gives its number of inputs")


def _one_hot(inputs: Tensor, total: int) -> Tensor:
    rows_nI = torch.zeros(len(inputs), total)
    rows_nI[torch.arange(len(inputs)), inputs] = 1
    return rows_nI


def _widen(values: Tensor) -> Tensor:
    return values.detach() if values.dtype == torch.float64 else values.detach().float()
