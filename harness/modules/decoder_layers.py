"""Walking through a decoder block by block: one block's inputs at a time, each block seeing what the earlier ones
became.

    token ids ─▶ embeddings ─▶ block 0 ─ inputs of block 1 ─▶ block 1 ─▶ …

Legend: B documents (1 here), T positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import BackendError
from harness.modules.experts import feed, split_taps
from harness.modules.linears import Linear, linears, matrices

Tap = Callable[[Tensor], None]


Given = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with besides hidden states: masks, rotary embeddings. Layers may differ in it."""


@dataclass
class _Document:
    """The hidden states [1, T, D] that go into the next block, and what each block is given beside them."""

    hidden: Tensor
    given: list[Given]


@dataclass
class Block:
    """One decoder block with the inputs of every calibration document."""

    name: str
    module: nn.Module
    _index: int
    _documents: list[_Document]

    def linears(self) -> list[tuple[str, Linear]]:
        """Full name and module of the block's linear layers, matrices of stacked experts among them."""
        return [(f"{self.name}.{name}", module) for name, module in matrices(self.module)]

    def run(self) -> Iterator[Tensor]:
        """The block's output [T, D] for every document, computed anew at each call with the block as it is now."""
        for document in self._documents:
            others, named = document.given[self._index]
            yield _hidden(self.module(document.hidden, *others, **named))[0]

    def observe(self, taps: Mapping[str, Tap]) -> None:
        """Run every document once; each tap gets the input [N, I] of the linear layer with its full name."""
        with listening(self.module, {name.removeprefix(f"{self.name}."): tap for name, tap in taps.items()}):
            for _ in self.run():
                pass


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the blocks that a decoder stacks. Raises BackendError where there is no such list."""
    found = [(name, module) for name, module in model.named_modules() if _is_stack(module)]
    if not found:
        raise BackendError(f"{type(model).__name__} has no list of decoder blocks, so it cannot be compressed by block")
    return max(found, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def walk_blocks(model: PreTrainedModel, calibration: Sequence[Tensor]) -> Iterator[Block]:
    """Every block in order. Its inputs come from the blocks before as they are when the walk goes on.

    calibration: token ids, one 1-D int64 tensor a document. Holds the inputs of one block for all documents, and
    nothing else. The walk goes on from a block with its outputs after whatever was done to it.
    """
    name, stack = decoder_blocks(model)
    with torch.no_grad():
        documents = [_opened(model, stack, ids) for ids in calibration]
        for index, module in enumerate(stack):
            block = Block(f"{name}.{index}", module, index, documents)
            yield block
            if index + 1 < len(stack):
                for document, output in zip(documents, block.run(), strict=True):
                    document.hidden = output[None]


@contextmanager
def listening(root: nn.Module, taps: Mapping[str, Tap]) -> Iterator[None]:
    """Let each tap see the input [N, I] of the submodule of its name whenever that is called.

    A matrix of stacked experts gets the inputs of the tokens that are routed to it.
    """
    plain, stacked = split_taps(taps)
    with ExitStack() as stack:
        for name, tap in plain.items():
            handle = root.get_submodule(name).register_forward_pre_hook(_hook(tap))
            stack.callback(handle.remove)
        for name, each in stacked.items():
            handle = root.get_submodule(name).register_forward_pre_hook(_feeding(each), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def observe_inputs(model: PreTrainedModel, taps: Mapping[str, Tap], calibration: Sequence[Tensor]) -> None:
    """One pass over all documents; each tap gets the inputs [N, I] of the module with its name."""
    with torch.no_grad(), listening(model, taps):
        for ids in calibration:
            model(input_ids=ids[None].to(model.device), use_cache=False)


def _hook(tap: Tap) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        tap(arguments[0].reshape(-1, arguments[0].shape[-1]))

    return hook


def _feeding(taps: Mapping[tuple[str, int], Tap]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        feed(module, arguments, named, taps)

    return hook


def _opened(model: PreTrainedModel, stack: nn.ModuleList, ids: Tensor) -> _Document:
    """How the model calls its blocks for one document, found by one pass; of the states only the first are kept."""
    first: list[Tensor] = []
    given: list[Given] = []

    def catch(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not first:
            first.append(arguments[0] if arguments else named["hidden_states"])
        given.append((arguments[1:], {key: value for key, value in named.items() if key != "hidden_states"}))

    with ExitStack() as hooks:
        for block in stack:
            hooks.callback(block.register_forward_pre_hook(catch, with_kwargs=True).remove)
        model(input_ids=ids[None].to(model.device), use_cache=False)
    return _Document(first[0], given)


def _is_stack(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.ModuleList)
        and len(module) > 0
        and len({type(each) for each in module}) == 1
        and any(True for _ in linears(module[0]))
        and hasattr(module[0], "forward")
    )


def _hidden(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
