"""Logits of a model and outputs of its modules, reproducible to the last bit in another process.

    documents ─ each alone, on one thread ─▶ logits [T, V]
    modules ─ the same few inputs for all of one width ─▶ outputs [K, O]

A module is called, however its weight is stored: its outputs for random directions characterize its effective weight,
its output for zero the bias. If two weights differ, so do their products with a random direction, so a few products
stand for the whole weight and need not be transferred in full. Unlike in ``modules.effective_weights``, hooks and
rounding of inputs are included, so that anything the files cannot store becomes visible.

Legend: T tokens, V vocabulary, K inputs, O output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.modules.inspection import logical_weights, own_tensors
from harness.modules.linears import Linear, weight_of

DOCUMENT, MODULE = "document/", "module/"
DIRECTIONS = 8
"""Number of random inputs per module. Eight estimate the size of a difference to about a quarter."""
WHOLE = 4096
"""Tensors of at most this many values are compared in full."""
CHUNK = 2**22
"""Number of values converted to float64 at a time."""

Outputs = dict[str, Tensor]
"""``document/<number>``: logits; ``module/<name>``: outputs of a module, or products of one of its tensors."""
Step = Callable[[int, int], None]


def model_outputs(model: PreTrainedModel, documents: Sequence[Tensor], step: Step) -> Outputs:
    """Logits of every document (token ids, 1-D) and outputs of every module; returned on the CPU.

    Computed on one thread, because the order of summation depends on the number of threads. step: called with progress.
    """
    device = cast(Tensor, model.get_input_embeddings().weight).device
    results: Outputs = {}
    with _one_thread(), torch.no_grad():
        for index, ids_T in enumerate(documents):
            step(index, len(documents) + 1)
            answer = model(input_ids=ids_T[None].to(device), use_cache=False, return_dict=True)
            results[f"{DOCUMENT}{index}"] = answer.logits[0].cpu().contiguous()
        step(len(documents), len(documents) + 1)
        results |= {f"{MODULE}{name}": value for name, value in _module_outputs(model)}
    step(len(documents) + 1, len(documents) + 1)
    return results


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of a text, including the special tokens that the tokenizer adds."""
    return tuple(tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _module_outputs(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Outputs of each module with own tensors; if it cannot be called alone, products as ``<module>:<tensor>``."""
    for name, module in model.named_modules():
        answer = _layer_outputs(module, model.dtype)
        if answer is not None:
            yield name, answer
            continue
        for key, tensor in own_tensors(module):
            yield f"{name}:{key}", _product(tensor.detach())


def _layer_outputs(module: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """Outputs [K, O] of a linear layer for random directions and zero; None for other modules and failing calls."""
    if logical_weights(module) is None:
        return None
    width = weight_of(module).shape[1] if isinstance(module, Linear) else getattr(module, "in_features", None)
    device = next((tensor.device for _, tensor in own_tensors(module)), torch.device("cpu"))
    if not isinstance(width, int):
        return None
    x_KI = torch.cat([_directions(width), torch.zeros(1, width)]).to(device, dtype if dtype.is_floating_point else None)
    try:
        y: Any = module(x_KI[None])
    except Exception:  # noqa: BLE001 - a library's layer may fail in any way outside its model; its tensors are used then
        return None
    return y[0].cpu().contiguous() if isinstance(y, Tensor) else None


def _directions(width: int) -> Tensor:
    """[DIRECTIONS, width]: fixed random directions."""
    return torch.randn(DIRECTIONS, width, generator=torch.Generator().manual_seed(width))


def _product(tensor: Tensor) -> Tensor:
    """A small tensor itself, or a large one times random directions, in float64; codes are treated as integers."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.view(torch.uint8)
    if tensor.numel() <= WHOLE or tensor.dim() < 2:
        return tensor.cpu().double().clone()  # Not the model's own, which may change.
    rows_NI = tensor.reshape(-1, tensor.shape[-1])
    direction_IK = _directions(rows_NI.shape[1]).double().T
    parts = torch.split(rows_NI, max(1, CHUNK // rows_NI.shape[1]))
    return torch.cat([part.cpu().double() @ direction_IK for part in parts])
