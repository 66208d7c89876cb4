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
from harness.models.linears import Linear, linears

Tap = Callable[[Tensor], None]


class _StopError(Exception):
    """Ends a forward pass after the call that was waited for."""


@dataclass
class _Call:
    """One call of a block: its hidden states [1, T, D] and whatever else the model passes along."""

    hidden: Tensor
    others: tuple[Any, ...]
    named: dict[str, Any]


@dataclass
class Block:
    """One decoder block with the inputs of every calibration document."""

    name: str
    module: nn.Module
    _calls: list[_Call]

    def linears(self) -> list[tuple[str, Linear]]:
        """Full name and module of the block's linear layers."""
        return [(f"{self.name}.{name}", module) for name, module in linears(self.module)]

    def run(self) -> Iterator[Tensor]:
        """The block's output [T, D] for every document, computed anew at each call with the block as it is now."""
        for call in self._calls:
            yield _hidden(self.module(call.hidden, *call.others, **call.named))[0]

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
        calls = [_first_call(model, stack[0], ids) for ids in calibration]
        for index, module in enumerate(stack):
            block = Block(f"{name}.{index}", module, calls)
            yield block
            if index + 1 < len(stack):
                later = _named_arguments(model, stack[index + 1], calibration) if _differ(stack) else None
                for position, output in enumerate(block.run()):
                    calls[position].hidden = output[None]
                    if later:
                        calls[position].others, calls[position].named = later[position]


@contextmanager
def listening(root: nn.Module, taps: Mapping[str, Tap]) -> Iterator[None]:
    """Let each tap see the input [N, I] of the submodule of its name whenever that is called."""
    with ExitStack() as stack:
        for name, tap in taps.items():
            handle = root.get_submodule(name).register_forward_pre_hook(_hook(tap))
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


def _first_call(model: PreTrainedModel, block: nn.Module, ids: Tensor) -> _Call:
    """How the model calls ``block`` for one document."""
    seen: list[_Call] = []

    def catch(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else named["hidden_states"]
        rest = {key: value for key, value in named.items() if key != "hidden_states"}
        seen.append(_Call(hidden, arguments[1:], rest))
        raise _StopError

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(input_ids=ids[None].to(model.device), use_cache=False)
    except _StopError:
        pass
    finally:
        handle.remove()
    return seen[0]


def _named_arguments(
    model: PreTrainedModel, block: nn.Module, calibration: Sequence[Tensor]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What a block is called with besides hidden states: masks differ where some layers slide a window."""
    calls = [_first_call(model, block, ids) for ids in calibration]
    return [(call.others, call.named) for call in calls]


def _differ(stack: nn.ModuleList) -> bool:
    """Whether blocks may get different masks or rotary embeddings (sliding windows in some layers)."""
    kinds = {getattr(module, "attention_type", None) for module in stack}
    kinds |= {getattr(getattr(module, "self_attn", None), "is_sliding", None) for module in stack}
    return len(kinds - {None}) > 1


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
