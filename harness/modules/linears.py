"""The linear layers of a model, independent of the orientation in which a class stores its weight.

Weights are presented as [O, I] (output channels, input dimension), as ``nn.Linear`` stores them; the ``Conv1D`` of
GPT-2 and similar models stores [I, O].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.modules.experts import ExpertMatrix, expert_matrices

Linear = nn.Linear | Conv1D


def linears(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Name and module of every linear layer, in the order of ``named_modules``; a shared module appears once."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


def matrices(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Every linear layer, followed by every expert's matrix of stacked parameters (see ``experts``)."""
    yield from linears(model)
    yield from expert_matrices(model)


def weight_of(module: Linear) -> Tensor:
    """The weight as [O, I]: a view, never a copy."""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def replace_weight(module: Linear, weight: Tensor) -> nn.Parameter:
    """Give ``module`` a new parameter from ``weight`` [O, I]; modules tied to the old one keep it.

    For an expert's matrix, the values in its stack are overwritten instead.
    """
    if isinstance(module, ExpertMatrix):
        module.weight.detach().copy_(weight)
        return cast(nn.Parameter, module.weight)
    stored = weight.T.contiguous() if isinstance(module, Conv1D) else weight
    module.weight = nn.Parameter(stored, requires_grad=False)
    return module.weight


def class_of(module: Linear) -> str:
    """Name of the class that computes with the weight; for an expert's matrix, the class of the experts module."""
    return type(module.owner if isinstance(module, ExpertMatrix) else module).__name__


def output_head(model: PreTrainedModel) -> str | None:
    """Name of the linear layer that computes the logits (usually ``lm_head``), None if no linear layer does."""
    head = cast(Any, model).get_output_embeddings()
    return next((name for name, module in linears(model) if module is head), None)
