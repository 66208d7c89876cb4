"""Records the calls of one submodule of a decoder block, so that they can be repeated with other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from harness.modules.decoder_layers import Block

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Replay:
    """The calls of ``block``'s submodule ``path`` (relative to the block; empty: the block itself) for the first
    ``documents`` documents (None: all)."""

    def __init__(self, block: Block, path: str = "", documents: int | None = None) -> None:
        self._module = block.module.get_submodule(path)
        self._calls: list[Call] = []

        def keep(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._calls.append((arguments, named))

        handle = self._module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            for _ in islice(block.run(), documents):
                pass
        finally:
            handle.remove()

    def outputs(self) -> Iterator[Tensor]:
        """The submodule's output for every call, recomputed with its current weights."""
        for arguments, named in self._calls:
            yield first_tensor(self._module(*arguments, **named))

    def calls(self, dtype: torch.dtype) -> list[Callable[[nn.Module], Tensor]]:
        """The calls in another precision, as functions of a copy of the submodule in that precision."""
        converted = [(_cast(arguments, dtype), _cast(named, dtype)) for arguments, named in self._calls]
        return [_bind_arguments(arguments, named) for arguments, named in converted]


def first_tensor(output: Any) -> Tensor:
    """The output of a module, or the first of several outputs."""
    return output if isinstance(output, Tensor) else output[0]


def _bind_arguments(arguments: tuple[Any, ...], named: dict[str, Any]) -> Callable[[nn.Module], Tensor]:
    return lambda module: first_tensor(module(*arguments, **named))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Every floating tensor inside plain tuples, lists and dictionaries in ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(each, dtype) for key, each in value.items()}
    return type(value)(_cast(each, dtype) for each in value) if type(value) in (tuple, list) else value
