"""Zeros among the weights of linear layers, and the pattern 2:4 that sparse kernels need: two zeros in every four.

Counted over neighbouring inputs of one output, as NVIDIA's sparse tensor cores group them (Mishra et al. 2021, arXiv
2104.08378).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.modules.experts import stacked_tensor
from harness.modules.linears import Linear, matrices, weight_of
from harness.records import Note

_ROWS = 8
"""Rows that are looked at first: a layer without the pattern is rarely read further."""


@dataclass(frozen=True)
class Sparsity:
    """zeros: share of weights that are zero, None for weights that are no plain floats. pattern: "2:4" or empty."""

    zeros: float | None
    pattern: str = ""


@torch.no_grad()
def measure_sparsity(weight_OI: Tensor) -> Sparsity:
    """Zeros of a weight [O, I], and whether every four neighbouring inputs of every output hold two or more."""
    if not weight_OI.numel():
        return Sparsity(None)
    zeros = 1 - int(weight_OI.count_nonzero()) / weight_OI.numel()
    return Sparsity(zeros, "2:4" if is_two_of_four(weight_OI) else "")


def sparsity_of(model: nn.Module, name: str) -> Sparsity:
    """Of the weight of a linear layer, or of all experts of a stack; unknown for any other module."""
    stack_EOI = stacked_tensor(model, name)
    if stack_EOI is not None:
        return measure_sparsity(stack_EOI.flatten(0, 1))
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return Sparsity(None)
    if not isinstance(module, Linear) or not _holds_floats(module):
        return Sparsity(None)
    return measure_sparsity(weight_of(module))


def is_two_of_four(weight_OI: Tensor) -> bool:
    """Whether a weight [O, I] has the pattern 2:4; one of zeros alone has none."""
    if not weight_OI.numel() or weight_OI.shape[1] % 4:
        return False
    halves = all(_has_pattern(rows) for rows in (weight_OI[:_ROWS], weight_OI[_ROWS:]))
    return halves and bool(weight_OI.any())


def note_sparse(name: str, model: nn.Module) -> Iterator[Note]:
    """How many linear layers and matrices of experts are sparse in the pattern 2:4, if some are."""
    plain = {path: weight_of(module) for path, module in matrices(model) if _holds_floats(module)}
    sparse = [path for path, weight_OI in plain.items() if is_two_of_four(weight_OI)]
    if sparse:
        text = (
            f"{name}: {len(sparse)} of {len(plain)} linear layers are sparse with the pattern 2:4 (two of every four "
            f"neighbouring inputs are zero; {sparse[0]} first); the zeros are held and multiplied as floats, so speed "
            "is that of dense weights"
        )
        yield Note(topic="sparse weights", text=text)


def _holds_floats(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return type(weight) is nn.Parameter and weight.is_floating_point()


def _has_pattern(rows_NI: Tensor) -> bool:
    return bool(((rows_NI.reshape(-1, 4) != 0).sum(1) <= 2).all())
