"""Activation quantization as a forward pre-hook: rounds the input of a module at every call.

    x ─ pre-hook: blocks ─▶ limits ─▶ steps ─▶ grid ─▶ x̂ ─▶ the module's own GEMM

The hook belongs to the module: a deep copy and a pickled copy have it too. A static range is the module's persistent
buffer ``activation_range``: it moves with the module, and it is part of the hash of the weights. ``state_dict()`` and
saved files contain that buffer but no hook; a folder with such files is refused at loading, because its tensors do not
fit its configuration. A model with dynamic ranges leaves no trace in its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from harness.errors import BackendError
from harness.modules.linears import linears
from harness.numerics.formats import Format, block_steps, cast
from harness.numerics.ranges import Limits
from harness.records import NumberFormat

RANGE = "activation_range"
"""Name of the buffer [2] with the low and the high end of a static range."""


@dataclass
class InputRounding:
    """A forward pre-hook that rounds the first argument of its module.

    static: whether the range is the module's buffer; otherwise it is computed from every input.
    """

    form: Format
    static: bool
    # Where hooks are unpickled, the handle keeps torch from giving the hook's number away again.
    _handle: RemovableHandle | None = field(default=None, repr=False, compare=False)

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments with the first one rounded."""
        limits = None
        if self.static:
            ends = module.get_buffer(RANGE)
            limits = Limits(ends[:1], ends[1:])
        return round_within(arguments[0], self.form, limits), *arguments[1:]

    def attach(self, module: nn.Module) -> None:
        """Round the module's input from now on, after all its existing hooks."""
        self._handle = module.register_forward_pre_hook(self)


def round_inputs(module: nn.Module, form: Format, limits: Limits | None, device: torch.device) -> None:
    """Round every input of ``module``: within ``limits`` of the whole tensor, or (None) within its own range."""
    if limits is not None:
        ends = torch.stack([limits.low, limits.high]).reshape(2)
        module.register_buffer(RANGE, ends.to(device, torch.float32))
    InputRounding(form, limits is not None).attach(module)


def input_roundings(module: nn.Module) -> list[InputRounding]:
    """The quantizer of a module's input, if it has one."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, InputRounding)]


def check_declared(model: nn.Module, declared: Mapping[str, NumberFormat]) -> None:
    """Check that exactly the linear layers whose inputs are declared as quantized round them.

    declared: by module name. Layers of libraries (other classes, or weights of other classes) may round inside their
    own GEMM and are not checked. Raises BackendError naming the first layer that does not match its declaration.
    """
    for name, module in linears(model):
        rounds = input_roundings(module)
        own_class = type(module) not in (nn.Linear, Conv1D) or type(module.weight) is not nn.Parameter
        own_product = own_class or "forward" in vars(module)
        if bool(rounds) != (name in declared) and not (name in declared and own_product):
            expected, found = declared.get(name, "no rounding"), rounds[0].form.name if rounds else "no rounding"
            raise BackendError(
                f"{name}: input format declared {expected}, found {found}; the step that changed it must declare "
                "its format"
            )


def round_within(x: Tensor, form: Format, limits: Limits | None) -> Tensor:
    """Round ``x`` [..., D] to the grid that spans ``limits`` (None: those of every block), in the dtype of ``x``.

    Computed in float32 (float64 stays), so in a model of 16-bit floats the result is rounded to these once more. NaN
    and infinity are preserved and do not widen a range: an overflow must stay visible.
    """
    if not x.numel():
        return x
    finite = x.isfinite()
    wide = (x if x.dtype == torch.float64 else x.float()).masked_fill(~finite, 0)
    blocks = form.blocks.split(wide)
    steps = block_steps(blocks, form, limits)
    onto = form.blocks.join(form.grid.round(blocks, steps.spread), tuple(x.shape))
    return torch.where(finite, cast(onto, x.dtype), x)
