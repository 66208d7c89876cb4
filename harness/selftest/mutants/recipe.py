"""Mutants whose compression recipe was wrong or only partly applied."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.backends import Compressed
from harness.backends._common.weights import Override
from harness.backends.round_to_nearest import RoundToNearest
from harness.backends.smoothquant import smoothing_scale
from harness.modules.linears import output_head
from harness.numerics.formats import Format, quantize
from harness.selftest.mutants import NotApplicable, harmless, mutant
from harness.selftest.mutants._codes import round_model
from harness.selftest.mutants._parts import (
    blocks,
    find_linear,
    middle_block,
    norms,
    projection,
    set_gain,
    set_weight,
    weight,
)

CHANNELS = RoundToNearest(bits=8, granularity="channel")
TENSORS = RoundToNearest(bits=8, symmetric=False, granularity="tensor")


@harmless("control")
def int8_channels(model: PreTrainedModel) -> Compressed:
    """Good 8-bit weights with one scale per channel, from which recipe mutants are derived."""
    return round_model(model, CHANNELS)


@harmless("control")
def int8_tensors(model: PreTrainedModel) -> Compressed:
    """8-bit weights with one scale and one zero point per layer."""
    return round_model(model, TENSORS)


@mutant(control="int8_channels")
def layer_at_two_bits(model: PreTrainedModel) -> Compressed:
    """One layer is left at the 2 bits of an experiment, all others at 8."""
    name, _ = middle_block(model)
    return round_model(model, _add_override(CHANNELS, Override(modules=(f"{name}.*",), bits=2)))


@mutant(control="int8_channels")
def head_at_three_bits(model: PreTrainedModel) -> Compressed:
    """The output head, which recipes normally skip, is quantized to 3 bits."""
    head = output_head(model)
    if head is None:
        raise NotApplicable(f"{type(model).__name__} has no linear output head")
    return round_model(
        model, _add_override(CHANNELS, Override(modules=(head,), bits=3)).model_copy(update={"skip": ()})
    )


@mutant(control="int8_tensors")
def one_zero_point_off_by_one(model: PreTrainedModel) -> Compressed:
    """The single zero point of the first layer's key projection, quantized per tensor, is off by one."""
    name, _ = projection(model, "k_proj", block=0)

    def shift(weight_OI: Tensor, form: Format) -> Tensor:
        rounded = quantize(weight_OI, form)
        return rounded.values + rounded.steps.scale

    return round_model(model, TENSORS, {name: shift})


@mutant()
def smoothing_half_folded(model: PreTrainedModel) -> Compressed:
    """SmoothQuant divided the gains of norms; the layers that read values and up projections were not scaled back."""
    _, stack = blocks(model)
    for block in stack:
        before = norms(block)
        if len(before) != 2:
            raise NotApplicable(f"the blocks of {type(model).__name__} do not have two norms with gains")
        for (_, norm, gain_D), scaled in zip(before, (("q_proj", "k_proj"), ("gate_proj",)), strict=True):
            layers = [find_linear(block, role) for role in scaled]
            columns_D = torch.stack([weight(module).abs().amax(0) for module in layers]).amax(0)
            # A norm's output channels are about as large as their gains.
            factor_D = smoothing_scale(gain_D.abs(), columns_D, alpha=0.5)
            set_gain(norm, gain_D / factor_D)
            for module in layers:
                set_weight(module, weight(module) * factor_D)
    return Compressed(model)


@mutant()
def norm_gain_forgotten(model: PreTrainedModel) -> Compressed:
    """The last norm keeps its initial gains of 1, because its name in the file differed."""
    norm, gain_D = _last_norm(model)
    if bool((gain_D - 1).abs().max() < 0.1):
        raise NotApplicable(f"the last norm of {type(model).__name__} has gains near 1 only")
    set_gain(norm, gain_D.new_ones(gain_D.shape))
    return Compressed(model)


@mutant()
def gain_overflowed(model: PreTrainedModel) -> Compressed:
    """One gain of the last norm overflowed in 16 bits and is infinite."""
    norm, gain_D = _last_norm(model)
    overflowed_D = gain_D.clone()
    overflowed_D[0] = float("inf")
    set_gain(norm, overflowed_D)
    return Compressed(model)


def _last_norm(model: PreTrainedModel) -> tuple[nn.Module, Tensor]:
    layers = norms(model)
    if not layers:
        raise NotApplicable(f"{type(model).__name__} has no norm with gains")
    return layers[-1][1:]


def _add_override(step: RoundToNearest, override: Override) -> RoundToNearest:
    return step.model_copy(update={"overrides": (override,)})
