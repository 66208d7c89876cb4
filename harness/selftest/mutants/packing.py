"""Mutants with errors between a quantizer and the kernel that reads its codes, scales and zero points.

Mutants that would destroy a model are confined to the middle decoder block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.backends import Compressed
from harness.numerics.formats import Format, quantize
from harness.selftest.mutants import harmless, mutant
from harness.selftest.mutants._codes import GROUP, INT4, INT8, Codes, misread, misread_block, round_model
from harness.selftest.mutants._parts import block_linears


@harmless("control")
def int8(model: PreTrainedModel) -> Compressed:
    """Good 8-bit weights in groups of 32, from which most mutants are derived."""
    return round_model(model, INT8)


@harmless("control")
def int4(model: PreTrainedModel) -> Compressed:
    """Good 4-bit weights in groups of 32 with zero points, from which mutants of 4-bit packing are derived."""
    return round_model(model, INT4)


@mutant(control="int8")
def group_scales_swapped(model: PreTrainedModel) -> Compressed:
    """Neighbouring groups of a channel have swapped scales: scales stored in another order than codes."""
    swap = misread(lambda codes: replace(codes, scale=_swap_neighbours(codes.scale)))
    return round_model(model, INT8, {name: swap for name, _ in INT8.select_layers(model)})


@mutant(control="int8")
def row_scales_permuted(model: PreTrainedModel) -> Compressed:
    """The rows of one tensor have the scales of other rows: sorted on one side of a file and not on the other."""

    def sort(codes: Codes) -> Codes:
        return replace(codes, scale=codes.scale[codes.scale.mean(-1).argsort()])

    name = block_linears(model)[0][0]
    return round_model(model, INT8, {name: misread(sort)})


@mutant(control="int4")
def zero_points_off_by_one(model: PreTrainedModel) -> Compressed:
    """Zero points of a 4-bit format are one too low: stored minus one, as in early GPTQ files, and read unchanged."""
    return misread_block(model, INT4, misread(lambda codes: replace(codes, zero=codes.zero - 1)))


@mutant(control="int8")
def group_transposed(model: PreTrainedModel) -> Compressed:
    """Codes of square tiles are transposed: packed for a kernel with the other orientation."""

    def transpose(codes: Codes) -> Codes:
        code_OI = codes.by_input.clone()
        rows, columns = (size // GROUP * GROUP for size in code_OI.shape)
        tiles = code_OI[:rows, :columns].reshape(rows // GROUP, GROUP, columns // GROUP, GROUP)
        code_OI[:rows, :columns] = tiles.transpose(1, 3).reshape(rows, columns)
        return codes.replace_code(code_OI)

    return misread_block(model, INT8, misread(transpose))


@mutant(control="int4")
def act_order_lost(model: PreTrainedModel) -> Compressed:
    """Columns were grouped by their size, as with GPTQ's act-order, but the loader assumes contiguous groups."""

    def ungroup(weight_OI: Tensor, form: Format) -> Tensor:
        order = weight_OI.square().sum(0).argsort(descending=True)
        codes = Codes.of(quantize(weight_OI[:, order], form), form)
        in_place_OI = codes.by_input.clone()
        in_place_OI[:, order] = codes.by_input[:, : len(order)]
        return codes.replace_code(in_place_OI).values()

    return misread_block(model, INT4, ungroup)


@mutant(control="int4")
def nibbles_swapped(model: PreTrainedModel) -> Compressed:
    """The two 4-bit codes of a byte are read in swapped order."""
    return misread_block(model, INT4, misread(lambda codes: codes.replace_code(_swap_neighbours(codes.by_input))))


@mutant(control="int8")
def codes_signed(model: PreTrainedModel) -> Compressed:
    """Unsigned codes are read as signed ones: those of 128 and more become negative."""

    def read_signed(codes: Codes) -> Codes:
        return replace(codes, code=codes.code - 256 * (codes.code > 127))

    return misread_block(model, INT8, misread(read_signed))


def _swap_neighbours(x: Tensor) -> Tensor:
    """Swap neighbours along the last axis; a last element without partner stays."""
    order = torch.arange(x.shape[-1], device=x.device) ^ 1
    order[order >= len(order)] = len(order) - 1
    return x[..., order]
