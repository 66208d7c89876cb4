"""What a model says and what its modules do, in numbers that two processes can compare to the last bit.

    documents ─ each alone, on one thread ─▶ logits [T, V]
    modules ─ the same few inputs for all of one width ─▶ outputs [K, O]

A module is asked what it computes, however its weight is stored: its outputs for random directions are those of its
effective weight, and a zero shows its bias. Where two weights differ, so do their products with a random direction, so
these few stand for the whole weight, which another process would have to be handed. Other than in
``models.effective_weights``, hooks and rounding of inputs count: what files cannot hold has to show.

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
"""Random inputs that each module is given. Eight tell the size of a difference to about a quarter."""
WHOLE = 4096
"""Tensors of at most so many values are compared whole."""
CHUNK = 2**22
"""Values that are widened at a time."""

Outputs = dict[str, Tensor]
"""``document/<number>``: logits; ``module/<name>``: outputs of a module, or products of a tensor that it keeps."""
Step = Callable[[int, int], None]


def outputs(model: PreTrainedModel, documents: Sequence[Tensor], step: Step) -> Outputs:
    """Logits of every document (token ids, 1-D) and what every module does; on the CPU, on one thread.

    One thread, because sums are formed in another order on several. step is told how far it is.
    """
    device = cast(Tensor, model.get_input_embeddings().weight).device
    found: Outputs = {}
    with _one_thread(), torch.no_grad():
        for index, ids_T in enumerate(documents):
            step(index, len(documents) + 1)
            answer = model(input_ids=ids_T[None].to(device), use_cache=False, return_dict=True)
            found[f"{DOCUMENT}{index}"] = answer.logits[0].cpu().contiguous()
        step(len(documents), len(documents) + 1)
        found |= {f"{MODULE}{name}": value for name, value in _modules(model)}
    step(len(documents) + 1, len(documents) + 1)
    return found


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of a text with the special tokens that the tokenizer adds by itself."""
    return tuple(tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _modules(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What each module that keeps tensors does; ``<module>:<tensor>`` for those that nobody can call alone."""
    for name, module in model.named_modules():
        answer = _answer(module, model.dtype)
        if answer is not None:
            yield name, answer
            continue
        for key, tensor in own_tensors(module):
            yield f"{name}:{key}", _product(tensor.detach())


def _answer(module: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """Outputs [K, O] of a linear layer for random directions and for zero; None for what is none or does not answer."""
    if logical_weights(module) is None:
        return None
    width = weight_of(module).shape[1] if isinstance(module, Linear) else getattr(module, "in_features", None)
    device = next((tensor.device for _, tensor in own_tensors(module)), torch.device("cpu"))
    if not isinstance(width, int):
        return None
    x_KI = torch.cat([_directions(width), torch.zeros(1, width)]).to(device, dtype if dtype.is_floating_point else None)
    try:
        y: Any = module(x_KI[None])
    except Exception:  # noqa: BLE001 - a library's layer may fail in any way outside its model; its tensors serve then
        return None
    return y[0].cpu().contiguous() if isinstance(y, Tensor) else None


def _directions(width: int) -> Tensor:
    """[DIRECTIONS, width], always the same."""
    return torch.randn(DIRECTIONS, width, generator=torch.Generator().manual_seed(width))


def _product(tensor: Tensor) -> Tensor:
    """A small tensor itself, a large one times random directions, in float64; codes count as the integers they are."""
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
