"""Weights that are said to lie on a grid, and weights that do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.errors import BackendError
from harness.modules import grid_check
from harness.modules.grid_check import check_grids, choose_sweeps, count_distinct, lies_on_grid
from harness.numerics import native
from harness.numerics.formats import MXFP4, NVFP4, Format, quantize, stored_bits
from harness.numerics.granularity import Blocks
from harness.numerics.grids import FP8_E4M3, NF4, Codebook, Float8, Integer, integer
from harness.records import ModuleFormat, NumberFormat
from harness.system import native_code
from harness.system.native_code import BuildError
from tests.helpers.number_formats import named

FORMATS: dict[str, tuple[Format, dict[str, Any]]] = {
    "int4": (Format(integer(4), Blocks("group", 32)), {"symmetric": True}),
    "int4 full": (Format(integer(4, full_range=True), Blocks("group", 24)), {"symmetric": True}),
    "int3 affine": (Format(integer(3, False), Blocks("group", 16)), {"symmetric": False}),
    "int8": (Format(integer(8), Blocks("group", 16)), {"symmetric": True}),
    "int8 affine": (Format(integer(8, False), Blocks("channel")), {"symmetric": False}),
    "int2": (Format(integer(2), Blocks("tensor")), {"symmetric": True}),
    "int4 block": (Format(integer(4), Blocks("block", 20)), {"symmetric": True}),
    "fp8_e4m3": (Format(FP8_E4M3, Blocks("channel")), {"symmetric": True}),
    "nf4": (Format(NF4, Blocks("group", 64)), {"symmetric": True}),
    "mxfp4": (MXFP4, {"symmetric": True}),
    "nvfp4": (NVFP4, {"symmetric": True}),
}
TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["plain", "native"])
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The check in plain torch, and in native code however few the values."""
    if request.param == "native" and native_code.find_compiler() is None:
        pytest.skip("this machine has no C++ compiler")
    monkeypatch.setattr(grid_check, "WORTH_BUILDING", 1 if request.param == "native" else 2**60)
    return str(request.param)


def made(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, dict[str, ModuleFormat]]:
    """A model of one layer [48, 72] in a format, and what is said of it."""
    form, fields = FORMATS[name]
    layer = nn.Linear(72, 48, bias=False)
    weight = torch.randn(48, 72, generator=torch.Generator().manual_seed(0)) * 0.03
    weight[3] = 0
    if form.blocks.kind != "tensor":
        weight[:, 5] *= 8
    layer.weight = nn.Parameter(quantize(weight.to(dtype).float(), form).values.to(dtype), requires_grad=False)
    return nn.Sequential(layer), {"0": stated(form, **fields)}


def stated(form: Format, **fields: Any) -> ModuleFormat:
    bits = stored_bits((48, 72), form)
    sharing = {"granularity": form.blocks.kind, "group_size": form.blocks.size}
    return ModuleFormat(
        module="0",
        type="Linear",
        parameters=48 * 72,
        stored_bytes=bits // 8,
        bits_per_weight=bits / (48 * 72),
        format=named(form.name, **(sharing | fields)),
        kernel="simulated",
        backend="rounding",
    )


def weight_of(model: nn.Sequential) -> Tensor:
    weight = model[0].weight
    assert isinstance(weight, Tensor)
    return weight.data


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.usefixtures("code")
def test_weights_in_their_format_are_accepted_and_counted(name: str, dtype: torch.dtype) -> None:
    model, described = made(name, dtype)
    (levels,) = check_grids(model, described).values()
    form = FORMATS[name][0]
    blocks = form.blocks.split(weight_of(model).float()).flatten(0, -2)
    assert levels == max(len(set(block.tolist())) for block in blocks) <= 2**form.grid.bits


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", ["one value", "noise", "columns", "other bits"])
@pytest.mark.usefixtures("code")
def test_weights_that_were_changed_later_are_refused(name: str, dtype: torch.dtype, change: str) -> None:
    model, described = made(name, dtype)
    weight = weight_of(model)
    generator = torch.Generator().manual_seed(1)
    if change == "one value":
        row = weight[7, 32:40]
        row[row.abs().argmin()] = row.abs().max() * 0.0371
    elif change == "noise":
        weight.add_((torch.randn(weight.shape, generator=generator) * 0.002).to(dtype))
    elif change == "columns":
        weight.mul_(torch.linspace(0.8, 1.2, 72).to(dtype))
    else:
        plain = torch.randn(weight.shape, generator=generator) * 0.03
        weight.copy_(quantize(plain, Format(integer(8, False), Blocks("tensor"))).values)
        if name in ("int8 affine", "fp8_e4m3"):
            weight.copy_(plain)
    with pytest.raises(BackendError, match=r"rounding: 0 is declared as .* distinct values"):
        check_grids(model, described)


@pytest.mark.usefixtures("code")
def test_a_factor_for_every_output_channel_leaves_the_grid_what_it_is() -> None:
    model, described = made("int4")
    before = check_grids(model, described)
    weight_of(model).mul_(torch.linspace(0.3, 3, 48)[:, None])
    assert check_grids(model, described) == before


@pytest.mark.usefixtures("code")
def test_a_scale_below_zero_turns_a_grid_around() -> None:
    """The codes of INT4 reach one further down than up."""
    model, described = made("int4 full")
    before = check_grids(model, described)
    weight_of(model).neg_()
    assert check_grids(model, described) == before


def test_native_code_is_built_for_many_values_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_sweeps(grid_check.WORTH_BUILDING - 1) is None
    if native_code.find_compiler() is not None:
        assert choose_sweeps(grid_check.WORTH_BUILDING) is native.build()

    def fail() -> None:
        raise BuildError("no C++ compiler was found")

    monkeypatch.setattr(native, "build", fail)
    assert choose_sweeps(grid_check.WORTH_BUILDING) is None


def test_what_cannot_be_told_is_left_out() -> None:
    model, described = made("int4")
    weight_of(model).normal_()
    for fields in ({"kernel": "real"}, {"format": NumberFormat(type="other", element="of another kind")}):
        assert check_grids(model, {"0": described["0"].model_copy(update=fields)}) == {}
    assert check_grids(nn.Sequential(nn.Identity()), described) == {}


def indexed(bits: int, size: int) -> tuple[nn.Sequential, dict[str, ModuleFormat]]:
    """Groups of columns in any order, which an index of 32 bits a column tells apart."""
    form = Format(integer(bits), Blocks("group", size))
    model = nn.Sequential(nn.Linear(72, 48, bias=False))
    order = torch.randperm(72, generator=torch.Generator().manual_seed(3))
    values = quantize(torch.randn(48, 72, generator=torch.Generator().manual_seed(2)), form).values
    model[0].weight = nn.Parameter(values[:, order], requires_grad=False)
    return model, {"0": stated(form, symmetric=True, act_order=True)}


@pytest.mark.usefixtures("code")
def test_groups_by_an_index_are_judged_by_rows() -> None:
    model, described = indexed(3, 36)
    assert check_grids(model, described) == {}
    in_order = described["0"].format.model_copy(update={"act_order": False})
    plain = described["0"].model_copy(update={"format": in_order})
    with pytest.raises(BackendError, match="do not lie on such a grid"):
        check_grids(model, {"0": plain})
    weight_of(model).add_(torch.randn(48, 72) * 0.01)
    with pytest.raises(BackendError, match="a row of its weight has 72 distinct values, allowed are 16"):
        check_grids(model, described)


def test_codebooks_and_sparse_values_are_counted_by_rows() -> None:
    values = torch.randn(48, 8, generator=torch.Generator().manual_seed(4))
    codes = torch.randint(0, 8, (48, 72), generator=torch.Generator().manual_seed(5))
    model = nn.Sequential(nn.Linear(72, 48, bias=False))
    model[0].weight = nn.Parameter(values.gather(1, codes), requires_grad=False)
    said = stated(Format(integer(3), Blocks("channel")), type="codebook", symmetric=None)
    assert check_grids(model, {"0": said}) == {"0": 8}
    weight_of(model)[0, :5] = torch.arange(5.0) + 100
    with pytest.raises(BackendError, match="distinct values"):
        check_grids(model, {"0": said})
    sparse = said.model_copy(
        update={
            "format": said.format.model_copy(update={"sparse": True}),
            "bits_per_weight": (72 * 48 * 3 + 48 * 8 * 16 + 5 * 48) / (72 * 48),
        }
    )
    assert check_grids(model, {"0": sparse})["0"] > 8
    weight_of(model).normal_()
    with pytest.raises(BackendError, match="distinct values"):
        check_grids(model, {"0": sparse})


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["int4", "int4 block", "int3 affine", "int8", "fp8_e4m3", "nf4"])
def test_weights_rounded_to_the_range_of_their_block_are_looked_at_once(
    name: str, dtype: torch.dtype, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, described = made(name, dtype)
    rounded: list[Tensor] = []
    for kind in (Integer, Float8, Codebook):
        own = kind._nearest

        def follow(grid: Any, quotient: Tensor, zero_point: Tensor | None, own: Any = own) -> Tensor:
            rounded.append(quotient)
            found: Tensor = own(grid, quotient, zero_point)
            return found

        monkeypatch.setattr(kind, "_nearest", follow)
    check_grids(model, described)
    if code == "native":
        assert not rounded, "what native code accepts is not looked at again"
        return
    assert 0 < sum(each.numel() for each in rounded) <= FORMATS[name][0].blocks.split(weight_of(model)).numel()


@pytest.mark.parametrize("dtype", [*TYPES, torch.float64])
@pytest.mark.parametrize("width", [1, 7, 8, 24, 33, 64])
def test_distinct_values_are_those_of_a_set(dtype: torch.dtype, width: int) -> None:
    values = torch.randint(-9, 10, (300, width), generator=torch.Generator().manual_seed(width)) * 0.25
    values[0, : width // 2 + 1] = -0.0
    values[0, width // 2 :] = 0.0
    typed = values.to(dtype)
    expected = [len({float(value) for value in row}) for row in typed]
    assert [count_distinct(typed[row : row + 1]) for row in range(300)] == expected
    assert count_distinct(typed) == max(expected)
    assert count_distinct(typed[:1]) == len({*typed[0].tolist()})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), size=st.integers(1, 40), scale=st.floats(1e-3, 100))
def test_integers_times_any_scale_lie_on_the_grid(seed: int, bits: int, size: int, scale: float) -> None:
    grid = integer(bits, full_range=True)
    low, high = grid.code_range
    codes = torch.randint(low, high + 1, (20, size), generator=torch.Generator().manual_seed(seed)).float()
    for dtype in TYPES:
        assert lies_on_grid((codes * scale).to(dtype).float(), grid, dtype).all()
    assert count_distinct(codes) == max(len(set(row.tolist())) for row in codes)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), size=st.integers(1, 40), scale=st.floats(1e-3, 100))
def test_codes_less_any_zero_point_lie_on_the_grid(seed: int, bits: int, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (20, size), generator=generator)
    codes = (codes - torch.randint(0, 2**bits, (20, 1), generator=generator)).float()
    for dtype in TYPES:
        assert lies_on_grid((codes * scale).to(dtype).float(), integer(bits, False), dtype).all()
