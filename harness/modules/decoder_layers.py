"""Walks through a decoder block by block; each block reads the outputs of the earlier blocks as already modified.

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
from harness.modules.experts import feed_taps, split_taps
from harness.modules.layer_pairs import text_part
from harness.modules.linears import Linear, linears, matrices
from harness.progress import track

Tap = Callable[[Tensor], None]


BlockArguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a block besides the hidden states: masks, rotary embeddings. They may differ between layers."""


@dataclass
class _BlockInputs:
    """Input hidden states [1, T, D] of the next block, and the other arguments of every block."""

    hidden: Tensor
    given: list[BlockArguments]


@dataclass
class Block:
    """One decoder block with its inputs for every calibration document."""

    name: str
    module: nn.Module
    _index: int
    _documents: list[_BlockInputs]

    def linears(self) -> list[tuple[str, Linear]]:
        """Full name and module of the block's linear layers, including the matrices of stacked experts."""
        return [(f"{self.name}.{name}", module) for name, module in matrices(self.module)]

    def run(self) -> Iterator[Tensor]:
        """The block's output [T, D] for every document, recomputed at each call with the block's current weights."""
        for document in self._documents:
            others, named = document.given[self._index]
            yield _hidden_states(self.module(document.hidden, *others, **named))[0]

    def observe(self, taps: Mapping[str, Tap]) -> None:
        """Run every document once; each tap receives the input [N, I] of the linear layer with its full name."""
        with attach_taps(self.module, {name.removeprefix(f"{self.name}."): tap for name, tap in taps.items()}):
            for _ in self.run():
                pass


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and module list of the decoder blocks. Raises BackendError if the model has none."""
    text = text_part(model)
    stacks = [(name, module) for name, module in model.named_modules() if name.startswith(text) and _is_stack(module)]
    if not stacks:
        raise BackendError(f"{type(model).__name__} has no list of decoder blocks, so it cannot be compressed by block")
    return max(stacks, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def walk_blocks(model: PreTrainedModel, calibration: Sequence[Tensor]) -> Iterator[Block]:
    """Yield every block in order, with inputs computed by the earlier blocks as they are when the walk continues.

    calibration: token ids, one 1-D int64 tensor per document. Memory: the inputs of one block for all documents. After
    each block the walk continues with that block's outputs, including any change made to it meanwhile.
    """
    name, stack = decoder_blocks(model)
    with torch.no_grad():
        documents = [_record_block_inputs(model, stack, ids) for ids in track("calibration documents", calibration)]
        for index, module in track("decoder blocks", list(enumerate(stack))):
            block = Block(f"{name}.{index}", module, index, documents)
            yield block
            if index + 1 < len(stack):
                for document, output in zip(documents, block.run(), strict=True):
                    document.hidden = output[None]


@contextmanager
def attach_taps(root: nn.Module, taps: Mapping[str, Tap]) -> Iterator[None]:
    """Call each tap with the input [N, I] of the submodule of its name whenever that is called.

    A matrix of stacked experts receives the inputs of the tokens routed to it.
    """
    plain, stacked = split_taps(taps)
    with ExitStack() as stack:
        for name, tap in plain.items():
            handle = root.get_submodule(name).register_forward_pre_hook(_input_hook(tap))
            stack.callback(handle.remove)
        for name, expert_taps in stacked.items():
            handle = root.get_submodule(name).register_forward_pre_hook(_expert_hook(expert_taps), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def observe_inputs(model: PreTrainedModel, taps: Mapping[str, Tap], calibration: Sequence[Tensor]) -> None:
    """Run all documents once; each tap receives the inputs [N, I] of the module with its name."""
    with torch.no_grad(), attach_taps(model, taps):
        for ids in calibration:
            model(input_ids=ids[None].to(model.device), use_cache=False)


def _input_hook(tap: Tap) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        tap(arguments[0].reshape(-1, arguments[0].shape[-1]))

    return hook


def _expert_hook(taps: Mapping[tuple[str, int], Tap]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        feed_taps(module, arguments, named, taps)

    return hook


def _record_block_inputs(model: PreTrainedModel, stack: nn.ModuleList, ids: Tensor) -> _BlockInputs:
    """Record, in one pass, how the model calls its blocks for one document; keeps only the first hidden states."""
    first: list[Tensor] = []
    given: list[BlockArguments] = []

    def catch(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not first:
            first.append(arguments[0] if arguments else named["hidden_states"])
        given.append((arguments[1:], {key: value for key, value in named.items() if key != "hidden_states"}))

    with ExitStack() as hooks:
        for block in stack:
            hooks.callback(block.register_forward_pre_hook(catch, with_kwargs=True).remove)
        model(input_ids=ids[None].to(model.device), use_cache=False)
    return _BlockInputs(first[0], given)


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is a list of parts that hold linear layers; hybrids mix classes of blocks."""
    return isinstance(module, nn.ModuleList) and len(module) > 0 and all(map(_has_linears, module))


def _has_linears(module: nn.Module) -> bool:
    return next(linears(module), None) is not None


def _hidden_states(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
