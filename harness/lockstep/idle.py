"""Which stored tensors a forward pass over a text reads: by the calls of modules, and by the operators it runs.

Some classes read the weight of a module that they never call, so calls alone do not tell.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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

    def touches(self, tensor: Tensor) -> bool:
        """Whether any operator read any of a tensor."""
        return self.reads(tensor) or tensor.data_ptr() in self.lookups

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


class Watch:
    """What the forward passes of one model read, all parts of it included. model: None for one without modules."""

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._called: set[str] = set()
        self._given: dict[str, list[Tensor]] = {}
        self._read = _Read()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the passes within the context."""
        with ExitStack() as stack:
            for name, module in [] if self._model is None else list(self._model.named_modules()):
                stack.callback(module.register_forward_pre_hook(partial(self._note, name), with_kwargs=True).remove)
            if self._model is not None:
                stack.enter_context(self._read)
            yield

    def idle(self) -> Idle:
        """What no pass ran; nothing where there was none."""
        if self._model is None or not self._called:
            return Idle()
        modules = dict(self._model.named_modules())
        idle: list[str] = []
        uncalled: list[str] = []
        for name in (name for name in modules if name not in self._called):
            if own := [tensor for _, tensor in own_tensors(modules[name])]:
                (uncalled if any(map(self._read.touches, own)) else idle).append(name)
        tables = [name for name, each in modules.items() if isinstance(each, nn.Embedding) and self._by_row(name, each)]
        return Idle(tuple(idle), tuple(tables), tuple(uncalled))

    def _note(self, name: str, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._called.add(name)
        if isinstance(module, nn.Embedding) and (ids := first_ids(arguments, named)) is not None:
            self._given.setdefault(name, []).append(ids.flatten())

    def _by_row(self, name: str, table: nn.Embedding) -> bool:
        """Whether a table was read by lookups of the rows that it was called with, and in no other way."""
        given, found = self._given.get(name, []), self._read.lookups.get(table.weight.data_ptr(), [])
        same = len(given) == len(found) > 0 and all(map(torch.equal, given, found))
        return same and not self._read.reads(table.weight)


def first_ids(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """The first tensor of integers that a module is called with."""
    tensors = [each for each in (*arguments, *named.values()) if isinstance(each, Tensor)]
    return next((each for each in tensors if not each.is_floating_point()), None)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First address of a tensor and the one after its last; those between may belong to others."""
    last = sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start
