"""Weight sensitivity: the diagonal of the Fisher information of a model's loss.

Legend: O output channels, I inputs, T tokens of a document, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.modules.experts import ExpertMatrix, stack_name
from harness.modules.linears import Linear


def fisher_diagonal(
    model: PreTrainedModel, modules: Mapping[str, Linear], calibration: Sequence[Tensor]
) -> dict[str, Tensor]:
    """F [O, I] in float32 for the weight of every module, by its name: the mean over documents of g².

    g is the gradient of one document's negative log-likelihood, summed over its T − 1 predicted tokens: the score
    of the document, whose squares average to the (empirical) Fisher information. As in SqueezeLLM (Kim et al. 2023,
    arXiv 2306.07629, section 4.1), whose documents are all equally long.

    calibration: token ids, one 1-D int64 tensor per document, of at least two tokens. Modules that share one weight
    share its F, to which all of them contribute; an embedding tied to a head does not. The model, including its
    parameters' ``requires_grad``, is unchanged. Memory: one float32 number per weight of the modules, the gradient of
    one weight matrix at a time, and the activations of one document.
    Raises ValueError without documents.
    """
    if not calibration:
        raise ValueError("no documents to measure gradients on")
    leaves: dict[int, Tensor] = {}
    sums: dict[int, Tensor] = {}
    for module in modules.values():
        held = _parameter_of(module)
        if id(held) not in leaves:
            leaf = held.detach().requires_grad_()
            total = torch.zeros_like(leaf, dtype=torch.float32, requires_grad=False)
            cast(Any, leaf).register_post_accumulate_grad_hook(_add_square_to(total))
            leaves[id(held)], sums[id(held)] = leaf, total
    tensors = {
        stack_name(name) if isinstance(module, ExpertMatrix) else f"{name}.weight": leaves[id(_parameter_of(module))]
        for name, module in modules.items()
    }
    for ids in calibration:
        with torch.enable_grad():
            loss = _negative_log_likelihood(model, tensors, ids.to(model.device))
            torch.autograd.backward(loss)
    for total in sums.values():
        total /= len(calibration)
    return {name: _slice_of(module, sums[id(_parameter_of(module))]) for name, module in modules.items()}


def _parameter_of(module: Linear) -> Tensor:
    """The model's parameter that holds the weight of a linear layer."""
    return module.stack if isinstance(module, ExpertMatrix) else module.weight


def _slice_of(module: Linear, total: Tensor) -> Tensor:
    """The part of a per-parameter tensor that belongs to the weight [O, I] of a linear layer."""
    if isinstance(module, ExpertMatrix):
        total = total[module.expert]
        return total.T if module.owner.is_transposed else total
    return total.T if isinstance(module, Conv1D) else total


def _negative_log_likelihood(model: PreTrainedModel, tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    named = {"input_ids": ids[None], "use_cache": False}
    logits_TV = functional_call(model, tensors, (), named, tie_weights=False).logits[0, :-1]
    return functional.cross_entropy(logits_TV.float(), ids[1:], reduction="sum")


def _add_square_to(total: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds the square of a complete gradient to ``total`` and frees the gradient."""

    def hook(leaf: Tensor) -> None:
        assert leaf.grad is not None  # noqa: S101 - called when it is complete
        total.add_(leaf.grad.float().square_())
        leaf.grad = None

    return hook
