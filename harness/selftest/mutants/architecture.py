"""Mutants with correct weights whose architecture or configuration is wrong."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.backends import Compressed
from harness.modules.linears import linears
from harness.selftest.mutants import NotApplicable, mutant
from harness.selftest.mutants._parts import block_linears, blocks, heads, middle_block, projection, set_weight, weight

ROPE_BASE = 10_000.0
"""Default of runtimes that do not find the base in the configuration."""


@mutant()
def rope_base_changed(model: PreTrainedModel) -> Compressed:
    """The rotary base is the default 10,000 because the one in the configuration was not read."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    base = rope.get("rope_theta")
    if not base:
        raise NotApplicable(f"{type(model).__name__} has no rotary positions with one base")
    other = ROPE_BASE if base != ROPE_BASE else 1e6
    # inv_freq_i = base^(−2i/d), so another base raises it to a power; position scaling is unaffected.
    exponent = math.log(other) / math.log(base)
    rotaries = [m for m in model.modules() if isinstance(getattr(m, "inv_freq", None), Tensor)]
    for module in rotaries:
        for name in ("inv_freq", "original_inv_freq"):
            if isinstance(frequencies := getattr(module, name, None), Tensor):
                setattr(module, name, frequencies**exponent)
    if not rotaries:
        raise NotApplicable(f"{type(model).__name__} stores no rotary frequencies")
    model.config = copy.deepcopy(model.config)
    model.config.get_text_config().rope_parameters = {**rope, "rope_theta": other}
    return Compressed(model)


@mutant()
def rotary_halves_interleaved(model: PreTrainedModel) -> Compressed:
    """Query and key rows of one layer use the other rotary layout, pairs of neighbours instead of halves."""
    query, kv, size = heads(model)
    for role, count in (("q_proj", query), ("k_proj", kv)):
        _, module = projection(model, role)
        rows = weight(module).reshape(count, 2, size // 2, -1)
        set_weight(module, rows.transpose(1, 2).reshape(count * size, -1))
    return Compressed(model)


@mutant()
def key_value_heads_swapped(model: PreTrainedModel) -> Compressed:
    """Queries of one layer read the keys and values of the neighbouring group: heads repeated in the wrong order."""
    _, kv, size = heads(model)
    if kv < 2:
        raise NotApplicable(f"{type(model).__name__} has one head of keys and values")
    for role in ("k_proj", "v_proj"):
        _, module = projection(model, role)
        set_weight(module, weight(module).reshape(kv, size, -1).roll(1, 0).flatten(0, 1))
    return Compressed(model)


@mutant()
def attention_head_zeroed(model: PreTrainedModel) -> Compressed:
    """The strongest head of one layer outputs nothing: its columns of the output projection are zero."""
    query, kv, size = heads(model)
    (_, value), (_, out) = projection(model, "v_proj"), projection(model, "o_proj")
    weight_OI = weight(out)
    value_HdI = weight(value).float().reshape(kv, size, -1).repeat_interleave(query // kv, 0)
    out_HdO = weight_OI.float().T.reshape(query, size, -1)
    # Models have heads without effect. A head adds W_O·W_V times its input to the residual stream, and
    # ‖W_O·W_V‖² = Σ (W_OᵀW_O) ∘ (W_V·W_Vᵀ), which needs no matrix larger than a head.
    strength_H = ((out_HdO @ out_HdO.mT) * (value_HdI @ value_HdI.mT)).sum((1, 2))
    strongest = int(strength_H.argmax())
    weight_OI[:, strongest * size : (strongest + 1) * size] = 0
    set_weight(out, weight_OI)
    return Compressed(model)


@mutant()
def gate_and_up_exchanged(model: PreTrainedModel) -> Compressed:
    """The halves of a fused gate and up projection are swapped in one layer."""
    (_, gate), (_, up) = projection(model, "gate_proj"), projection(model, "up_proj")
    gate_OI, up_OI = weight(gate), weight(up)
    set_weight(gate, up_OI)
    set_weight(up, gate_OI)
    return Compressed(model)


@mutant()
def layer_left_out(model: PreTrainedModel) -> Compressed:
    """The middle layer adds nothing to the residual stream: skipped by an off-by-one loop."""
    outputs = [module for name, module in block_linears(model) if name.endswith((".o_proj", ".down_proj"))]
    if len(outputs) != 2:
        raise NotApplicable(f"the blocks of {type(model).__name__} do not end in o_proj and down_proj")
    for module in outputs:
        set_weight(module, torch.zeros_like(weight(module)))
    return Compressed(model)


@mutant()
def layers_exchanged(model: PreTrainedModel) -> Compressed:
    """Two neighbouring layers have swapped attention weights: files sorted by name, where 10 comes before 2."""
    _, stack = blocks(model)
    if len(stack) < 3:
        raise NotApplicable(f"{type(model).__name__} has {len(stack)} layers, too few for two in its middle")
    first, second = dict(linears(stack[len(stack) // 2 - 1])), dict(linears(stack[len(stack) // 2]))
    for name, module in first.items():
        other = second.get(name)
        if other is None or other.weight.shape != module.weight.shape:
            raise NotApplicable(f"the two middle layers of {type(model).__name__} are not alike")
        one, two = weight(module), weight(other)
        set_weight(module, two)
        set_weight(other, one)
    return Compressed(model)


@mutant()
def expert_zeroed(model: PreTrainedModel) -> Compressed:
    """One expert of one layer outputs nothing: calibration never reached it, and its scales stayed 0."""
    _, block = middle_block(model)
    experts = [m for name, m in block.named_modules() if name.rpartition(".")[2] == "experts"]
    if not experts:
        raise NotApplicable(f"{type(model).__name__} is not a mixture of experts")
    first = next((p for name, p in experts[0].named_parameters() if "down_proj" in name), None)
    if first is None:
        raise NotApplicable(f"{type(experts[0]).__name__} has no down_proj")
    # Either one tensor for all experts, or a list of experts, of which the first is taken.
    (first.data[0] if first.dim() == 3 else first.data).zero_()
    return Compressed(model)
