"""Formats bit for bit against torchao, compressed-tensors and bitsandbytes, and their properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.numerics.formats import (
    MXFP4,
    MXFP8_E4M3,
    MXFP8_E5M2,
    NVFP4,
    Format,
    cast,
    format_of,
    quantize,
    stored_bits,
)
from harness.numerics.granularity import Blocks
from harness.numerics.grids import FP4_E2M1, FP8_E4M3, NF4, dynamic_float, integer
from harness.numerics.named_formats import named_formats
from harness.numerics.ranges import Limits
from harness.numerics.scales import DOUBLE, FLOAT

FORMATS = [
    Format(integer(4), Blocks("group", 32)),
    Format(integer(3, symmetric=False), Blocks("group", 7)),
    Format(integer(8), Blocks("channel")),
    Format(integer(8), Blocks("channel", axis=1)),
    Format(integer(4), Blocks("block", 5)),
    Format(FP8_E4M3, Blocks("tensor")),
    Format(FP4_E2M1, Blocks("token")),
    Format(NF4, Blocks("group", 64)),
    MXFP4,
    MXFP8_E4M3,
    MXFP8_E5M2,
    NVFP4,
]
COUPLED = [Format(NF4, Blocks("group", 64), DOUBLE), Format(integer(8), Blocks("group", 16), DOUBLE)]


def label(value: object) -> str:
    if not isinstance(value, Format):
        return str(value)
    affine = "" if value.grid.symmetric else "-affine"
    return f"{value.name}{affine}-{value.blocks.kind}{value.blocks.size or ''}-{value.scales.kind}"


def weights(rows: int = 64, columns: int = 256, seed: int = 0) -> Tensor:
    """Rows of different size, with outliers, zeros and a row of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
    x[torch.rand(rows, columns, generator=generator) > 0.99] *= 20
    x[torch.rand(rows, columns, generator=generator) > 0.9] = 0
    x[rows // 2] = 0
    return x


# --- other implementations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, None])
def test_integers_are_those_of_compressed_tensors(bits: int, symmetric: bool, group: int | None) -> None:
    quantization: Any = pytest.importorskip(
        "compressed_tensors.quantization", reason="compares with compressed-tensors' grids"
    )
    utils: Any = pytest.importorskip("compressed_tensors.quantization.utils", reason="compares with compressed-tensors")
    forward: Any = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward", reason="as above")
    x = weights()
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    args = quantization.QuantizationArgs(num_bits=bits, symmetric=symmetric, **strategy)
    pieces = x.reshape(len(x), -1, group or x.shape[1])
    scale, zero = utils.calculate_qparams(pieces.amin(-1), pieces.amax(-1), args)
    expected = forward.fake_quantize(x, scale, zero, args)
    blocks = Blocks("group", group) if group else Blocks("channel")
    form = Format(integer(bits, symmetric, full_range=symmetric), blocks)
    found = quantize(x, form)
    used = found.steps.scale > 0
    assert torch.equal(found.steps.scale[used], scale.reshape(used.shape)[used])
    assert torch.equal(found.values, expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_are_those_of_torchao(bits: int, symmetric: bool) -> None:
    other: Any = pytest.importorskip("torchao.quantization.quant_primitives", reason="compares with torchao's grids")
    x = weights()
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    mapping = other.MappingType.SYMMETRIC if symmetric else other.MappingType.ASYMMETRIC
    dtype = torch.int8 if symmetric else torch.uint8
    scale, zero = other.choose_qparams_affine(
        x, mapping, (1, 32), dtype, low, high, scale_dtype=torch.float32, zero_point_dtype=torch.int32
    )
    codes = other.quantize_affine(x, (1, 32), scale, zero, dtype, low, high)
    expected = other.dequantize_affine(codes, (1, 32), scale, zero, dtype, low, high)
    found = quantize(x, Format(integer(bits, symmetric, full_range=symmetric), Blocks("group", 32)))
    # torchao multiplies by the reciprocal of the scale, which can turn a tie the other way.
    quotient = x.view(64, -1, 32) / found.steps.divisor[..., None]
    tie = ((quotient - quotient.floor() - 0.5).abs() < 1e-4).view_as(x)
    assert tie.float().mean() < 0.04
    assert torch.equal(found.values[~tie], expected[~tie])


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (MXFP4, torch.float4_e2m1fn_x2),
        (MXFP8_E4M3, torch.float8_e4m3fn),
        (MXFP8_E5M2, torch.float8_e5m2),
    ],
    ids=label,
)
def test_microscaling_formats_are_those_of_torchao(form: Format, dtype: torch.dtype) -> None:
    other: Any = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="compares with torchao's MX")
    x = weights()
    scales, codes = other.to_mx(x, dtype, 32)
    assert torch.equal(quantize(x, form).values, other.to_dtype(codes, scales, dtype, 32, torch.float32))


def test_power_of_two_scales_are_numbers_of_e8m0() -> None:
    other: Any = pytest.importorskip("ml_dtypes", reason="compares with ml_dtypes' float8_e8m0fnu")
    x = torch.ldexp(torch.full((280, 32), 1.9), torch.arange(-150, 130, 1).clamp(max=127)[:, None])
    scale = quantize(x, MXFP4).steps.scale.flatten()
    again = torch.from_numpy(scale.numpy().astype(other.float8_e8m0fnu).astype("float32"))
    assert torch.equal(scale, again)
    assert scale.min() == 2.0**-127
    expected = [2.0 ** max(e - 2, -127) if e >= -149 else 0.0 for e in [*range(-149, 128), 127, 127]]
    assert scale.tolist()[1:] == expected


def test_nvfp4_is_that_of_torchao() -> None:
    other: Any = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", reason="compares with torchao")
    kernels: Any = pytest.importorskip("torchao.prototype.mx_formats.kernels", reason="as above")
    x = weights()
    whole = other.per_tensor_amax_to_scale(x.abs().max())
    scales, codes = other.nvfp4_quantize(x, 16, whole)
    values = kernels.f4_unpacked_to_f32(kernels.unpack_uint4(codes)).view(len(x), -1, 16)
    expected = (values * (scales.float() * whole)[..., None]).view_as(x)
    # torchao raises scales to the smallest normal number of E4M3, 2^−6; here they go down to 2^−9.
    same = (scales.float() > 2.0**-6).repeat_interleave(16, dim=1)
    assert same.float().mean() > 0.8
    found = quantize(x, NVFP4)
    assert torch.equal(found.values[same], expected[same])
    assert (found.values - x).square().sum() <= (expected - x).square().sum()


def test_a_small_block_of_nvfp4_is_not_lost() -> None:
    x = torch.full((2, 16), 448 * 6.0)
    x[1] = 6 * 2.0**-11
    # On a scale of 2^−9 the values are 1.5 steps of 2^−9, which E2M1 has.
    assert torch.equal(quantize(x, NVFP4).values, x)


def test_nf4_is_that_of_bitsandbytes() -> None:
    other: Any = pytest.importorskip("bitsandbytes.functional", reason="compares with bitsandbytes' NF4")
    x = weights(256, 512, 1)
    codes, state = other.quantize_4bit(x, blocksize=64, compress_statistics=False, quant_type="nf4")
    assert torch.equal(quantize(x, Format(NF4, Blocks("group", 64), FLOAT)).values, other.dequantize_4bit(codes, state))


@pytest.mark.parametrize("seed", range(4))
def test_nf4_with_scales_quantized_twice_is_that_of_bitsandbytes(seed: int) -> None:
    """Bit for bit but for one step: its processor code looks the 8-bit code of a scale up in a table of 65,536 cells
    over −1 … 1, so that it takes the second nearest where a scale lies half a cell from the middle between two."""
    other: Any = pytest.importorskip("bitsandbytes.functional", reason="compares with bitsandbytes' NF4")
    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed - 2)
    packed, state = other.quantize_4bit(x, blocksize=64, compress_statistics=True, quant_type="nf4")
    found = quantize(x, Format(NF4, Blocks("group", 64), DOUBLE))
    book = torch.tensor(dynamic_float().values)
    assert torch.equal(state.state2.code, book)
    exact = x.view(-1, 64).abs().amax(1)
    centred = (exact - exact.mean()).view(-1, 256)
    relative = (centred / centred.abs().amax(1, keepdim=True)).flatten()
    nearest = (book - relative[:, None]).abs().argmin(1)
    in_cells = ((relative + 1) * 0.5 * 65535 + 0.5).floor().double() / 65535 * 2 - 1
    assert torch.equal((book.double() - in_cells[:, None]).abs().argmin(1), state.absmax.long())
    same = nearest == state.absmax.long()
    assert 0.99 < same.float().mean() < 1
    theirs = other.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.equal(found.steps.scale.flatten()[same], theirs[same])
    assert torch.equal(found.values.view(-1, 64)[same], other.dequantize_4bit(packed, state).view(-1, 64)[same])
    # Their codes are ours everywhere: codes are chosen under the exact scales.
    ours = quantize(x, Format(NF4, Blocks("group", 64), FLOAT))
    plain, exact_state = other.quantize_4bit(x, blocksize=64, compress_statistics=False, quant_type="nf4")
    assert torch.equal(plain, packed)
    assert torch.equal(ours.values, other.dequantize_4bit(plain, exact_state))


def test_scales_quantized_twice_by_definition() -> None:
    x = weights(columns=640)
    found = quantize(x, COUPLED[0])
    exact = x.view(-1, 64).abs().amax(1)
    book = torch.tensor(dynamic_float().values)
    mean = exact.mean()
    for start in range(0, len(exact), 256):
        some = exact[start : start + 256]
        centred = some - mean
        nearest = (book - (centred / centred.abs().max())[:, None]).abs().argmin(1)
        stored = (book[nearest] * centred.abs().max() + mean).clamp(min=0) * (some > 0)
        assert torch.allclose(found.steps.scale.flatten()[start : start + 256], stored, rtol=1e-6, atol=1e-9)
    codes = (torch.tensor(NF4.values) - (x.view(-1, 64) / exact.clamp(min=1e-30)[:, None])[..., None]).abs().argmin(-1)
    expected = torch.tensor(NF4.values)[codes] * found.steps.scale.view(-1, 1)
    assert torch.allclose(found.values, expected.view_as(x), rtol=1e-6, atol=0)


# --- properties ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS, ids=label)
def test_pieces_are_rounded_like_the_whole(form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    x = weights(33, 130)
    whole = quantize(x, form).values
    monkeypatch.setattr("harness.numerics.formats.CHUNK_VALUES", 300)
    assert torch.equal(quantize(x, form).values, whole)
    split = form.blocks.split(x)
    steps = quantize(x, form).steps
    assert torch.equal(form.blocks.join(form.grid.round(split, steps.spread), tuple(x.shape)), whole)


@pytest.mark.parametrize("form", [*FORMATS, *COUPLED], ids=label)
@given(exponent=st.integers(-20, 20), seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_a_power_of_two_passes_through(form: Format, exponent: int, seed: int) -> None:
    x = weights(9, 70, seed)
    assert torch.equal(quantize(x * 2.0**exponent, form).values, quantize(x, form).values * 2.0**exponent)


@pytest.mark.parametrize("form", [form for form in FORMATS if form.blocks.kind != "block"], ids=label)
def test_the_order_of_rows_does_not_matter(form: Format) -> None:
    x = weights()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize(x[order], form).values, quantize(x, form).values[order])


@pytest.mark.parametrize("form", [*FORMATS, *COUPLED], ids=label)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extremes_stay_finite(form: Format, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for value in (0.0, limits.max, -limits.max, limits.tiny, limits.tiny / 4, 1.0, -3e-5):
        x = torch.full((6, 70), value, dtype=dtype)
        x[:3, ::2] = 0
        found = cast(quantize(x, form).values, dtype)
        assert bool(torch.isfinite(found).all()), value
        assert bool((found[x == 0] == 0).all()), value
        # No value grows by more than what a coarse grid and its scale can round it by.
        assert bool((found.double().abs() <= 1.3 * x.double().abs()).all()), value


@pytest.mark.parametrize("form", [*FORMATS, *COUPLED], ids=label)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(form: Format, bad: float) -> None:
    x = weights()
    x[3, 5] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(x, form)
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(x, form, Limits(torch.zeros(1), torch.ones(1)))


# --- names and sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bits"),
    [("mxfp4", 4 + 8 / 32), ("mxfp8_e4m3", 8 + 8 / 32), ("mxfp8_e5m2", 8 + 8 / 32), ("nvfp4", 4 + 8 / 16 + 32 / 2**20)],
)
def test_block_formats_by_name(name: str, bits: float) -> None:
    form = format_of(named_formats()[name].record())
    assert form.name == name
    assert stored_bits((1024, 1024), form) / 2**20 == bits


def test_double_quantization_stores_what_the_paper_says() -> None:
    """8/64 + 32/(64·256) = 0.127 bits a weight, and one mean."""
    size = stored_bits((1024, 1024), Format(NF4, Blocks("group", 64), DOUBLE))
    assert size == 2**20 * 4 + 2**20 // 64 * 8 + 2**20 // (64 * 256) * 32 + 32


def test_rounding_past_the_largest_number_of_a_type_saturates() -> None:
    assert cast(torch.tensor([1e6, -1e6, 1.0]), torch.float16).tolist() == [65504, -65504, 1]
