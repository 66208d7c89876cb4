"""Mixtures whose files pack every expert's matrices on their own, while the class computes with stacks of all experts.

    experts.3.gate_proj.weight_packed, …_scale, …_shape ─▶ floats ─▶ experts.gate_up_proj [E, O, I]

llm-compressor writes them so. transformers decodes them at loading, to bfloat16 and without rounding of inputs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from harness.models.verification.stored_scales import StoredTensor
from harness.modules.experts import stacks
from harness.records import ModuleFormat, NumberFormat

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

_PARTS = re.compile(r"_(packed|scale|shape|zero_point|global_scale|g_idx)$")
"""What the name of a packed weight has at its end."""


def find_packed_experts(model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Bytes in the files of every stack whose experts are stored one by one and packed, by the stack's name.

    stored: every tensor of the files, by the name under which ``model`` loads it.
    """
    names = {name for name, _, _ in stacks(model)}
    patterns = list(_source_patterns(model))
    sizes: defaultdict[str, int] = defaultdict(int)
    packed: set[str] = set()
    for key, tensor in stored.items():
        name = _PARTS.sub("", key)
        for pattern, target in patterns:
            stack = pattern.sub(target, name)
            if stack != name and stack in names:
                sizes[stack] += tensor.size
                packed |= {stack} if key != name else set()
    return {stack: size for stack, size in sizes.items() if stack in packed}


def describe_packed_experts(
    model: PreTrainedModel, stored: Mapping[str, StoredTensor], declared: Mapping[str, Any]
) -> Iterator[tuple[ModuleFormat, QuantizationScheme]]:
    """Format of every such stack, without the number format, and the scheme that the config gives to experts."""
    sizes = find_packed_experts(model, stored)
    if not sizes:
        return
    from compressed_tensors.quantization import QuantizationConfig
    from transformers.integrations.compressed_tensors import get_experts_scheme

    scheme = get_experts_scheme(QuantizationConfig.model_validate(dict(declared)))
    for name, module, parameter in stacks(model):
        if name in sizes:
            weights = getattr(module, parameter).numel()
            yield _describe(name, module, weights, sizes[name]), scheme


def _describe(name: str, module: nn.Module, weights: int, size: int) -> ModuleFormat:
    return ModuleFormat(
        module=name,
        type=type(module).__name__,
        parameters=weights,
        stored_bytes=size,
        bits_per_weight=8 * size / weights,
        format=NumberFormat(type="other"),
        kernel="simulated",
        backend="compressed-tensors",
    )


def convert_stacks(model: PreTrainedModel, names: Collection[str], dtype: torch.dtype) -> None:
    """Convert the stacks of these names, which were decoded to bfloat16, to the declared dtype in place."""
    for name, module, parameter in stacks(model):
        stack: nn.Parameter = getattr(module, parameter)
        if name in names and stack.dtype != dtype:
            stack.data = stack.data.to(dtype)


def _source_patterns(model: PreTrainedModel) -> Iterator[tuple[re.Pattern[str], str]]:
    """For every stack that is merged at loading: the names of its experts' weights, and the name of the stack."""
    for conversion in get_model_conversion_mapping(model):
        if isinstance(conversion, WeightConverter):
            for source in conversion.source_patterns:
                pattern = re.escape(source.removesuffix("$")).replace(r"\*", r"\d+")
                yield re.compile(f"{pattern}$"), conversion.target_patterns[0]
