"""Finds the parts of a model that mutants change. A missing part raises NotApplicable."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import BackendError
from harness.modules.decoder_layers import decoder_blocks
from harness.modules.linears import Linear, linears, replace_weight, weight_of
from harness.selftest.mutants import NotApplicable


def middle_block(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """Name and module of the middle decoder block; the first and last ones are often special."""
    name, stack = blocks(model)
    middle = len(stack) // 2
    return f"{name}.{middle}", stack[middle]


def blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks."""
    try:
        return decoder_blocks(model)
    except BackendError as error:
        raise NotApplicable(str(error)) from error


def block_linears(model: PreTrainedModel) -> list[tuple[str, Linear]]:
    """The linear layers of the middle block under their full names."""
    name, block = middle_block(model)
    return [(f"{name}.{inner}", module) for inner, module in linears(block)]


def projection(model: PreTrainedModel, role: str, block: int | None = None) -> tuple[str, Linear]:
    """The linear layer whose name ends in ``role`` (``k_proj``), of the middle block or of block number ``block``."""
    name, stack = blocks(model)
    number = len(stack) // 2 if block is None else block
    module = find_linear(stack[number], role)
    return next(f"{name}.{number}.{inner}" for inner, each in linears(stack[number]) if each is module), module


def find_linear(block: nn.Module, role: str) -> Linear:
    """The linear layer of a block whose name ends in ``role``."""
    matches = [module for name, module in linears(block) if name.rpartition(".")[2] == role]
    if len(matches) != 1:
        raise NotApplicable(f"{type(block).__name__} has {len(matches)} linear layers called {role}, expected one")
    return matches[0]


def norms(root: nn.Module) -> list[tuple[str, nn.Module, Tensor]]:
    """Name, module and gain of every norm that has one."""
    return [
        (name, module, module.weight.detach())
        for name, module in root.named_modules()
        if "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), Tensor)
    ]


def set_weight(module: Linear, weight_OI: Tensor) -> None:
    """Set the weight [O, I] of a linear layer, in the dtype of the old one."""
    replace_weight(module, weight_OI.to(module.weight.dtype))


def set_gain(module: nn.Module, gain_D: Tensor) -> None:
    """Set the gain of a norm."""
    old = module.weight
    assert isinstance(old, Tensor)  # noqa: S101 - norms() saw to it
    module.weight = nn.Parameter(gain_D.to(old.dtype), requires_grad=False)


def heads(model: PreTrainedModel) -> tuple[int, int, int]:
    """Query heads, key-value heads, and channels of a head."""
    config = model.config.get_text_config()
    query = getattr(config, "num_attention_heads", None)
    if not query:
        raise NotApplicable(f"the configuration of {type(model).__name__} has no num_attention_heads")
    kv = getattr(config, "num_key_value_heads", None) or query
    return query, kv, getattr(config, "head_dim", None) or config.hidden_size // query


def weight(module: Linear) -> Tensor:
    """A copy of the weight [O, I]."""
    return weight_of(module).clone()
