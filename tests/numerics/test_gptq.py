"""GPTQ against its definition, and against the program that most checkpoints are made with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.numerics.formats import MXFP4, NVFP4, Format, Quantized, quantize
from harness.numerics.gptq import Hessian, Solution, gptq, keep_nearest, output_errors
from harness.numerics.granularity import Blocks
from harness.numerics.grids import FP8_E4M3, NF4, integer
from harness.numerics.ranges import Limits
from harness.numerics.scales import DOUBLE


def layer(
    outputs: int, inputs: int, positions: int = 0, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """A weight [O, I], and the Hessian [I, I] of inputs that depend on each other and differ in size."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=draw, dtype=dtype) / inputs**0.5
    sizes = torch.rand(inputs, generator=draw, dtype=dtype) * 2 + 0.1
    x_NI = torch.randn(positions or 3 * inputs, inputs, generator=draw, dtype=dtype) @ mix * sizes
    weight = torch.randn(outputs, inputs, generator=draw, dtype=dtype)
    return weight, 2 * x_NI.T @ x_NI / len(x_NI)


def grouped(bits: int, size: int, symmetric: bool = True) -> Format:
    return Format(integer(bits, symmetric), Blocks("group", size))


def total(weight: Tensor, values: Tensor, hessian: Tensor) -> float:
    return float(torch.trace((weight - values) @ hessian @ (weight - values).T))


# --- the definition -----------------------------------------------------------------------------------------------


def scale_of(group: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point of every row."""
    low, high = group.min(1).values.clamp(max=0), group.max(1).values.clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
        return scale, torch.zeros_like(scale)
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


def nearest_code(w: Tensor, scale: Tensor, zero: Tensor, bits: int, symmetric: bool) -> Tensor:
    least, most = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    return ((torch.round(w / scale) + zero).clamp(least, most) - zero) * scale


def by_definition(
    weight: Tensor, hessian: Tensor, bits: int, size: int, symmetric: bool, act_order: bool, static: bool
) -> Tensor:
    """Optimal brain quantization in a fixed order: the inverse is computed anew for the columns that are left.

    Equation 2 of the paper, one column at a time, with nothing of what makes GPTQ quick.
    """
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)).to(hessian)
    order = torch.argsort(hessian.diagonal(), descending=True) if act_order else torch.arange(len(hessian))
    now, done = weight.clone(), torch.zeros_like(weight)
    for place, column in enumerate(order):
        left = order[place:]
        inverse = torch.linalg.inv(hessian[left][:, left])
        if static:
            start = int(column) // size * size
            scale, zero = scale_of(weight[:, start : start + size], bits, symmetric)
        elif place % size == 0:
            scale, zero = scale_of(now[:, left[:size]], bits, symmetric)
        done[:, column] = nearest_code(now[:, column], scale, zero, bits, symmetric)
        error = (now[:, column] - done[:, column]) / inverse[0, 0]
        now[:, left] -= error[:, None] * inverse[0]
    return done


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("size", "symmetric", "block"), [(16, True, 128), (32, False, 128), (48, True, 20), (8, True, 1)]
)
def test_it_solves_what_the_paper_defines(
    size: int, symmetric: bool, block: int, act_order: bool, static: bool
) -> None:
    weight, hessian = layer(12, 76)
    expected = by_definition(weight, hessian, 3, size, symmetric, act_order, static)
    form = grouped(3, size, symmetric)
    found = gptq(weight, hessian, form, block=block, act_order=act_order, static_groups=static)
    # In float64 no value lies so near a tie that two orders of summation could part.
    torch.testing.assert_close(found.quantized.values, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [8, 20, 64, 150])
def test_the_block_is_a_matter_of_speed_alone(size: int) -> None:
    weight, hessian = layer(9, 150)
    first, *others = (gptq(weight, hessian, grouped(4, size), block=block).quantized for block in (1, 7, 50, 128, 500))
    for other in others:
        torch.testing.assert_close(other.values, first.values, rtol=0, atol=1e-9)
        torch.testing.assert_close(other.steps.scale, first.steps.scale, rtol=1e-9, atol=0)


def test_one_scale_for_a_whole_row_is_that_of_the_weight_as_it_was() -> None:
    weight, hessian = layer(12, 40)
    channel = gptq(weight, hessian, Format(integer(3), Blocks("channel"))).quantized
    expected = by_definition(weight, hessian, 3, 40, True, False, True)
    torch.testing.assert_close(channel.values, expected, rtol=0, atol=1e-9)
    assert torch.equal(channel.steps.scale, quantize(weight, Format(integer(3), Blocks("channel"))).steps.scale)


# --- llm-compressor -----------------------------------------------------------------------------------------------


@pytest.mark.slow  # The library alone takes ten seconds to import.
@pytest.mark.parametrize(
    ("strategy", "size", "actorder"), [("group", 32, None), ("group", 128, "static"), ("channel", None, None)]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_llm_compressor_gives_the_same_codes(
    strategy: str, size: int | None, actorder: str | None, symmetric: bool
) -> None:
    theirs = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize", exc_type=ImportError)
    from compressed_tensors.quantization import QuantizationArgs

    weight, hessian = layer(192, 256, dtype=torch.float32)
    blocks = Blocks("channel") if size is None else Blocks("group", size)
    form = Format(integer(4, symmetric, full_range=symmetric), blocks)
    steps = quantize(weight, form).steps
    scale = steps.scale.reshape(len(weight), -1)
    zero = torch.zeros_like(scale) if steps.zero_point is None else steps.zero_point.reshape(len(weight), -1)
    if symmetric is False:
        zero = zero - 8  # Their codes run from −8 to 7 whatever the grid.
    values, _, fell_back = theirs.quantize_weight(
        weight[None].clone(),
        hessian[None].clone(),
        scale[None],
        zero[None],
        None,
        QuantizationArgs(num_bits=4, symmetric=symmetric, strategy=strategy, group_size=size, actorder=actorder),
    )
    assert not bool(fell_back.any())
    found = gptq(weight, hessian, form, act_order=actorder is not None, static_groups=True).quantized.values
    # Both work in float32 and sum in another order. A value that close to a tie may fall to the other side, and what
    # comes after it in its row with it: at most one row in a hundred.
    differs = (found - values[0]).abs() > 1e-3 * scale.min()
    assert differs.any(1).float().mean() <= 0.01


# --- rounding to nearest -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 12),
    inputs=st.integers(1, 70),
    positions=st.integers(1, 100),
    bits=st.integers(2, 6),
    size=st.integers(1, 40),
    seed=st.integers(0, 1000),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    static=st.booleans(),
)
def test_no_row_comes_out_farther_off_than_rounded_to_nearest(
    outputs: int,
    inputs: int,
    positions: int,
    bits: int,
    size: int,
    seed: int,
    symmetric: bool,
    act_order: bool,
    static: bool,
) -> None:
    weight, hessian = layer(outputs, inputs, positions, seed)
    form = grouped(bits, size, symmetric)
    nearest = quantize(weight, form)
    solution = gptq(weight, hessian, form, act_order=act_order, static_groups=static)
    kept, rows = keep_nearest(solution, weight, hessian, nearest)
    assert total(weight, kept.quantized.values, hessian) <= total(weight, nearest.values, hessian) * (1 + 1e-9)
    if kept.group_of is None and solution.group_of is None:
        for row in range(outputs):
            was, now = (
                total(weight[row : row + 1], v[row : row + 1], hessian) for v in (nearest.values, kept.quantized.values)
            )
            assert now <= was * (1 + 1e-9)
        steps = kept.quantized.steps
        again = form.grid.round(form.blocks.split(kept.quantized.values), steps.spread)
        torch.testing.assert_close(
            form.blocks.join(again, tuple(weight.shape)), kept.quantized.values, rtol=0, atol=1e-12
        )
    else:
        assert len(set(rows.tolist())) == 1


def spoiled(solution: Solution, rows: list[int]) -> Solution:
    """The solution with rows that are far off."""
    values = solution.quantized.values.clone()
    values[rows] = 0
    return replace(solution, quantized=Quantized(values, solution.quantized.steps))


def test_rows_that_come_closer_by_rounding_to_nearest_are_rounded_to_nearest() -> None:
    weight, hessian = layer(8, 64)
    form = grouped(4, 16)
    nearest, solution = quantize(weight, form), gptq(weight, hessian, form)
    kept, rows = keep_nearest(spoiled(solution, [1, 5]), weight, hessian, nearest)
    assert rows.nonzero().flatten().tolist() == [1, 5]
    for row in range(8):
        source = nearest if row in (1, 5) else solution.quantized
        assert torch.equal(kept.quantized.values[row], source.values[row])
        assert torch.equal(kept.quantized.steps.scale[row], source.steps.scale[row])


def test_groups_that_are_no_neighbours_are_kept_or_left_as_a_whole() -> None:
    weight, hessian = layer(8, 64)
    form = grouped(4, 16)
    nearest, solution = quantize(weight, form), gptq(weight, hessian, form, act_order=True)
    kept, rows = keep_nearest(spoiled(solution, [1]), weight, hessian, nearest)
    assert not rows.any() or rows.all()
    kept, rows = keep_nearest(spoiled(solution, list(range(8))), weight, hessian, nearest)
    assert rows.all()
    assert kept.group_of is None
    assert kept.index_bits == 0
    assert torch.equal(kept.quantized.values, nearest.values)


def test_the_output_error_is_the_trace_of_the_definition() -> None:
    weight, hessian = layer(5, 1100, 50)
    values = quantize(weight, grouped(3, 32)).values
    off = weight - values
    torch.testing.assert_close(output_errors(off, hessian), (off @ hessian @ off.T).diagonal())


# --- order, groups, dead columns, damping ---------------------------------------------------------------------------


def test_activation_order_says_which_column_is_in_which_group() -> None:
    weight, hessian = layer(6, 40)
    form = grouped(3, 16)
    found = gptq(weight, hessian, form, act_order=True)
    order = torch.argsort(hessian.diagonal(), descending=True)
    assert found.group_of is not None
    assert found.group_of[order].tolist() == [0] * 16 + [1] * 16 + [2] * 8
    assert found.index_bits == 32 * 40
    scale = found.quantized.steps.scale[:, found.group_of]
    codes = found.quantized.values / scale
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    assert codes.abs().max() <= 3 + 1e-9


@pytest.mark.parametrize("fields", [{"static_groups": True}, {"size": 64}])
def test_neighbours_need_no_index(fields: dict[str, Any]) -> None:
    weight, hessian = layer(6, 40)
    static = fields.get("static_groups", False)
    found = gptq(weight, hessian, grouped(3, fields.get("size", 16)), act_order=True, static_groups=static)
    assert found.group_of is None
    assert found.index_bits == 0


def ones(x: Tensor, form: Format) -> Limits:
    """A range that depends on no weight."""
    blocks = form.blocks.split(x)
    return Limits(torch.full_like(blocks[..., 0], -2), torch.full_like(blocks[..., 0], 2))


@pytest.mark.parametrize("act_order", [False, True])
def test_a_dead_column_is_rounded_to_nearest_and_leaves_the_others_alone(act_order: bool) -> None:
    weight, hessian = layer(6, 40)
    dead = torch.tensor([0, 17, 39])
    hessian[dead] = 0
    hessian[:, dead] = 0
    form = Format(integer(4), Blocks("channel"))
    found = gptq(weight, hessian, form, act_order=act_order, limits=ones).quantized.values
    alive = torch.tensor([column for column in range(40) if column not in dead])
    nearest = quantize(weight, form, ones(weight, form)).values
    assert torch.equal(found[:, dead], nearest[:, dead])
    reduced = gptq(weight[:, alive], hessian[alive][:, alive], form, act_order=act_order, limits=ones).quantized.values
    torch.testing.assert_close(found[:, alive], reduced, rtol=0, atol=1e-9)


def test_without_any_calibration_signal_it_is_rounding_to_nearest() -> None:
    weight, _ = layer(6, 40)
    form = grouped(4, 16)
    for hessian in (torch.zeros(40, 40).double(), torch.eye(40).double() * 3):
        assert torch.equal(gptq(weight, hessian, form).quantized.values, quantize(weight, form).values)


def test_damping_is_raised_until_the_hessian_can_be_decomposed() -> None:
    weight, hessian = layer(6, 40)
    assert gptq(weight, hessian, grouped(4, 8)).damping == 0.01
    singular = torch.ones(40, 40)
    singular[3, 4] = singular[4, 3] = 1.0005  # What rounding does to sums of squares.
    found = gptq(weight.float(), singular, grouped(4, 8), damping=1e-7)
    assert 1e-7 < found.damping < 0.1
    assert torch.isfinite(found.quantized.values).all()


def test_the_ranges_are_those_that_were_asked_for() -> None:
    weight, hessian = layer(6, 40)
    for static in (False, True):
        found = gptq(weight, hessian, grouped(3, 16), static_groups=static, limits=ones).quantized
        assert torch.equal(found.steps.scale, torch.full((6, 3), 2 / 3, dtype=torch.float64))
        assert found.values.abs().max() <= 2


@pytest.mark.parametrize(
    ("form", "static"),
    [
        (MXFP4, False),
        (MXFP4, True),
        (NVFP4, True),
        (Format(NF4, Blocks("group", 16)), False),
        (Format(NF4, Blocks("group", 16), DOUBLE), True),
        (Format(FP8_E4M3, Blocks("channel")), False),
        (Format(integer(3), Blocks("tensor")), False),
        (Format(integer(3, False), Blocks("block", 16)), False),
        (Format(integer(3), Blocks("channel", axis=1)), False),
    ],
    ids=lambda value: value.name if isinstance(value, Format) else str(value),
)
@pytest.mark.parametrize("act_order", [False, True])
def test_every_format_is_met_and_better_than_rounding_to_nearest(form: Format, static: bool, act_order: bool) -> None:
    weight, hessian = layer(20, 70, dtype=torch.float32)
    found = gptq(weight, hessian, form, static_groups=static, act_order=act_order)
    nearest = quantize(weight, form)
    assert total(weight, found.quantized.values, hessian) < 0.9 * total(weight, nearest.values, hessian)
    steps = found.quantized.steps
    if found.group_of is None:
        blocks = form.blocks.split(found.quantized.values)
        assert torch.equal(form.grid.round(blocks, replace(steps, chosen_under=None).spread), blocks)
    if static or form.blocks.kind != "group":
        assert torch.equal(steps.scale, nearest.steps.scale)


@pytest.mark.parametrize("form", [NVFP4, Format(NF4, Blocks("group", 16), DOUBLE)])
def test_scales_that_hang_together_are_refused_unless_static(form: Format) -> None:
    weight, hessian = layer(4, 32)
    with pytest.raises(ValueError, match=r"depend on all groups.*static_groups"):
        gptq(weight, hessian, form)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_it_gives_the_same_twice_and_changes_nothing(act_order: bool, turned: bool) -> None:
    weight, hessian = layer(30, 100, dtype=torch.float32)
    weight = weight.T.contiguous().T if turned else weight
    before = weight.clone(), hessian.clone()
    first, second = (gptq(weight, hessian, grouped(3, 16), act_order=act_order).quantized.values for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])
    assert first.is_contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hessian_II": torch.ones(3, 4)}, "square"),
        ({"hessian_II": torch.eye(5)}, "does not match a Hessian of"),
        ({"hessian_II": -torch.eye(4)}, "not positive semi-definite"),
        ({"hessian_II": torch.eye(4) * torch.nan}, "NaN"),
        ({"weight_OI": torch.full((2, 4), torch.inf)}, "infinity"),
        ({"block": 0}, "block is 0"),
        ({"damping": 2.0}, "damping is 2.0"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"weight_OI": torch.ones(2, 4), "hessian_II": torch.eye(4), "form": grouped(4, 2)}
    with pytest.raises(ValueError, match=message):
        gptq(**(given | change))


# --- the Hessian ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pieces_add_up_to_the_hessian_of_the_whole(dtype: torch.dtype) -> None:
    x_NI = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = 2 * x_NI.double().T @ x_NI.double() / 50
    one, other = Hessian(), Hessian()
    for piece in x_NI[:30].split(7):
        one.add(piece)
    other.add(x_NI[30:])
    one.merge(other)
    assert one.count == 50
    assert one.matrix.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(one.matrix.double(), whole, rtol=1e-5, atol=1e-5)


def test_a_hessian_of_nothing_or_of_infinity_is_refused() -> None:
    with pytest.raises(ValueError, match="no calibration input"):
        _ = Hessian().matrix
    broken = Hessian()
    broken.add(torch.tensor([[1.0, torch.inf]]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        _ = broken.matrix
