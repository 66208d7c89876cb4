"""Weights as codes, scales and zero points, to simulate kernels and loaders that read one of them wrongly.

Legend: O output channels, I inputs, G groups of a channel, n inputs of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.backends import Compressed
from harness.backends._common.weights import Replacing, untie_head
from harness.backends.round_to_nearest import RoundToNearest
from harness.modules.linears import weight_of
from harness.numerics.formats import Format, Quantized, quantize
from harness.selftest.mutants._parts import block_linears

GROUP = 32
INT8 = RoundToNearest(bits=8, symmetric=False, group_size=GROUP)
INT4 = RoundToNearest(bits=4, symmetric=False, group_size=GROUP)


@dataclass(frozen=True)
class Codes:
    """A weight in groups: x̂ = (code − zero) · scale. code: [O, G, n]; scale, zero: [O, G]."""

    code: Tensor
    scale: Tensor
    zero: Tensor
    inputs: int

    @classmethod
    def of(cls, round_model: Quantized, form: Format) -> Codes:
        """The codes of a weight quantized in groups with zero points."""
        scale, zero = round_model.steps.scale, round_model.steps.zero_point
        assert zero is not None  # noqa: S101 - both formats above have zero points
        blocks = form.blocks.split(round_model.values)
        code = torch.round(blocks / round_model.steps.divisor[..., None]) + zero[..., None]
        return cls(code, scale, zero, round_model.values.shape[1])

    def values(self) -> Tensor:
        """The dequantized weight [O, I]."""
        values_OGn = (self.code - self.zero[..., None]) * self.scale[..., None]
        return values_OGn.flatten(1)[:, : self.inputs]

    @property
    def by_input(self) -> Tensor:
        """Codes [O, G·n] in the order of inputs, the last group padded."""
        return self.code.flatten(1)

    def replace_code(self, code_OI: Tensor) -> Codes:
        """Other codes under the same scales."""
        return replace(self, code=code_OI.reshape(self.code.shape))


Fault = Callable[[Tensor, Format], Tensor]
"""Maps a weight [O, I] to the weight that a faulty kernel computes with, of the same shape."""


def misread(change: Callable[[Codes], Codes]) -> Fault:
    """A fault that quantizes a weight correctly and then misreads its codes, scales or zero points."""
    return lambda weight_OI, form: change(Codes.of(quantize(weight_OI, form), form)).values()


def round_model(model: PreTrainedModel, step: RoundToNearest, faults: Mapping[str, Fault] | None = None) -> Compressed:
    """Round the model as configured in ``step``, then misread the modules named in ``faults``."""
    replacing, described = Replacing(), []
    for name, module in step.select_layers(model):
        form = step.for_module(name).weight_format()
        if not replacing.replace_if_shared(module):
            weight_OI, fault = weight_of(module), (faults or {}).get(name)
            replacing.replace(module, fault(weight_OI, form) if fault else quantize(weight_OI, form).values)
        described.append(step.describe(name, module))
    untie_head(model, (module.module for module in described))
    return Compressed(model, tuple(described))


def misread_block(model: PreTrainedModel, step: RoundToNearest, fault: Fault) -> Compressed:
    """Round the model and misread every linear layer of the middle block."""
    return round_model(model, step, {name: fault for name, _ in block_linears(model)})
