"""The weight that a linear layer computes with, whatever it keeps.

Libraries keep the original in ``.weight`` and round it at every call, keep codes there, or nothing. So the layer is
applied: W = (f(e₁) − f(0), f(e₂) − f(0), …). Only where a layer is of a class whose product is known, and its weight a
plain tensor of floats, the tensor itself is taken.

The layer is applied in a copy, since some libraries rearrange their weights in the first call, and without hooks,
since those round inputs. A layer that rounds its inputs inside its own product is seen with rows that are zero but for
one value, which a scale for every token does not change. What such a layer makes of other inputs is compared with the
weight that was found, and said.

Legend: O output channels, I inputs, n inputs that are tried, N rows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.errors import ModelError
from harness.modules.experts import ExpertMatrix
from harness.modules.linears import weight_of

MOST_INPUTS = 1024
"""Inputs that are tried of a layer that has to be applied; of more, as many at equal distances."""
ROWS = 256
"""Inputs that are tried at a time."""
_KNOWN = (nn.Linear, Conv1D, ExpertMatrix)


@dataclass(frozen=True)
class EffectiveWeight:
    """What a layer multiplies its inputs by, and adds.

    weight: [O, n] for the tried inputs, in float32 (float64 stays). inputs: their numbers [n], int64. total: how many
    inputs the layer has. held: whether it is a plain tensor of the layer rather than found by applying it. caveat: what
    the layer does beside that, in a sentence; empty for nothing.
    """

    weight: Tensor
    bias: Tensor | None
    inputs: Tensor
    total: int
    held: bool
    caveat: str = ""


def is_held(module: nn.Module) -> bool:
    """Whether the layer is of a known class, not patched, and multiplies by a plain tensor of 16 bits or more."""
    weight = module._parameters.get("weight")
    plain = weight is not None and type(weight) in (nn.Parameter, Tensor)
    if not plain or weight is None or type(module) not in _KNOWN or "forward" in vars(module):
        return False
    return weight.dim() == 2 and weight.is_floating_point() and weight.element_size() > 1


def effective_weight(module: nn.Module, dtype: torch.dtype = torch.float32, most: int = MOST_INPUTS) -> EffectiveWeight:
    """The weight and bias of a linear layer.

    dtype: that of the inputs it is given in its model. most: how many inputs are tried, if it has to be applied. Raises
    ModelError for a layer that cannot be applied by itself, or that gives NaN or infinity.
    """
    if is_held(module):
        known: Any = module
        weight_OI = weight_of(known)
        bias = None if known.bias is None else known.bias.detach()
        total = weight_OI.shape[1]
        return EffectiveWeight(_wide(weight_OI), bias, torch.arange(total), total, held=True)
    total = _inputs(module)
    inputs = torch.arange(total)[:: max(1, -(-total // most))]
    try:
        return _applied(module, dtype, inputs, total)
    except ModelError:
        raise
    except Exception as error:  # A library may raise anything.
        raise ModelError(
            f"{type(module).__name__} cannot be applied by itself: {type(error).__name__}: {error}"
        ) from error


def copied(module: nn.Module) -> nn.Module:
    """A copy of a layer for a call by itself: what the call does to plain tensors, it does to those of the copy.

    Tensors that are made of others are shared, since some of them cannot be copied.
    """
    tensors = (*module.parameters(), *module.buffers())
    shared = {id(each): each for each in tensors if hasattr(each, "__tensor_flatten__")}
    return copy.deepcopy(module, dict[int, Any](shared))


@torch.no_grad()
def _applied(module: nn.Module, dtype: torch.dtype, inputs: Tensor, total: int) -> EffectiveWeight:
    layer: Any = copied(module)
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))

    def apply(x_NI: Tensor) -> Tensor:
        found_NO: Tensor = layer.forward(x_NI.to(device, dtype))
        if not bool(torch.isfinite(found_NO).all()):
            raise ModelError(f"{type(module).__name__} gives NaN or infinity for finite inputs")
        return _wide(found_NO)

    bias_O = apply(torch.zeros(1, total))[0]
    if isinstance(layer._parameters.get("bias"), Tensor):
        # In 16 bits little would be left of a small weight in a sum with the bias.
        layer.bias.zero_()
    zero_O = apply(torch.zeros(1, total))[0]
    pieces = [apply(_one_hot(some, total)) - zero_O for some in torch.split(inputs, ROWS)]
    weight_On = torch.cat(pieces).T
    chance = torch.Generator().manual_seed(0)
    x_NI = torch.zeros(4, total)
    x_NI[:, inputs] = torch.randn(4, len(inputs), generator=chance)
    expected_NO = x_NI[:, inputs].to(dtype).to(weight_On) @ weight_On.T
    apart = float((apply(x_NI) - zero_O - expected_NO).norm() / expected_NO.norm().clamp(min=1e-30))
    return EffectiveWeight(weight_On, bias_O if bool(bias_O.any()) else None, inputs, total, False, _said(apart, dtype))


def _said(apart: float, dtype: torch.dtype) -> str:
    """What is said of a layer whose outputs for random inputs are so far from the weight's, relatively."""
    if apart <= (1e-3 if dtype in (torch.float32, torch.float64) else 2e-2):
        return ""
    return (
        f"for random inputs its outputs are {apart:.2%} away from those of this weight: it rounds its inputs, too, "
        "which is no part of the error of the weight"
    )


def _inputs(module: nn.Module) -> int:
    for name in ("in_features", "infeatures", "nx"):
        if isinstance(found := getattr(module, name, None), int):
            return found
    raise ModelError(f"{type(module).__name__} does not say how many inputs it has")


def _one_hot(inputs: Tensor, total: int) -> Tensor:
    rows_nI = torch.zeros(len(inputs), total)
    rows_nI[torch.arange(len(inputs)), inputs] = 1
    return rows_nI


def _wide(values: Tensor) -> Tensor:
    return values.detach() if values.dtype == torch.float64 else values.detach().float()
