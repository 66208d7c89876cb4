"""Which stored tensors a forward pass over a text reads: by the calls of modules, and by the operators it runs.

Some classes read the weight of a module that they never call, so calls alone do not tell.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.lockstep.decoder import Decoder
from harness.lockstep.recording import Idle
from harness.modules.inspection import own_tensors


class _Read(TorchDispatchMode):
    """Records the memory that operators read, and for those that look up rows, which rows."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lookups: dict[int, list[Tensor]] = {}
        self.otherwise: set[tuple[int, int]] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator."""
        tensors = [each for each in tree_leaves((args, kwargs)) if type(each) in (Tensor, nn.Parameter)]
        if func is torch.ops.aten.embedding.default:
            self.lookups.setdefault(args[0].data_ptr(), []).append(args[1].flatten())
        else:
            self.otherwise.update(map(_extent, tensors))
        return func(*args, **(kwargs or {}))

    def reads(self, tensor: Tensor) -> bool:
        """Whether an operator other than a lookup read any of a tensor."""
        start, end = _extent(tensor)
        index = bisect_left(self._merged, (end, 0)) - 1
        return index >= 0 and self._merged[index][1] > start

    @cached_property
    def _merged(self) -> list[tuple[int, int]]:
        """What was read, as disjoint extents in ascending order. Views of one weight have extents that overlap."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(self.otherwise):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        return merged


def find_idle(decoder: Decoder, ids_1T: Tensor) -> Idle:
    """Run the model once on token ids [1, T] and tell what took no part; nothing of a model without modules."""
    model = decoder.modules
    if model is None:
        return Idle()
    called: set[str] = set()
    given: dict[str, Tensor] = {}

    def note(name: str, _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        called.add(name)
        numbers = first_ids(arguments, named)
        if numbers is not None and name in embeddings:
            given[name] = numbers.flatten()

    embeddings = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(note, name), with_kwargs=True).remove)
        read = stack.enter_context(_Read())
        decoder.language_model.logits(ids_1T.to(decoder.device))
    idle = [
        name
        for name, module in model.named_modules()
        if name not in called and (own := [tensor for _, tensor in own_tensors(module)])
        if not any(read.reads(tensor) or tensor.data_ptr() in read.lookups for tensor in own)
    ]
    tables = [name for name, module in embeddings.items() if _reads_rows(module, given.get(name), read)]
    return Idle(tuple(idle), tuple(tables))


def first_ids(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """The first tensor of integers that a module is called with."""
    tensors = [each for each in (*arguments, *named.values()) if isinstance(each, Tensor)]
    return next((each for each in tensors if not each.is_floating_point()), None)


def _reads_rows(module: nn.Embedding, given: Tensor | None, read: _Read) -> bool:
    """Whether a table was read by one lookup of the rows that it was called with, and in no other way."""
    found = read.lookups.get(module.weight.data_ptr(), [])
    return given is not None and len(found) == 1 and torch.equal(found[0], given) and not read.reads(module.weight)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First address of a tensor and the one after its last; those between may belong to others."""
    last = sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start
