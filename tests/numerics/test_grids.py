"""Grids against torch's and ml_dtypes' own casts, searches by brute force, and bitsandbytes' codebooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.numerics.grids import (
    FP4_E2M1,
    FP8_E4M3,
    FP8_E5M2,
    NF4,
    Codebook,
    Float8,
    Grid,
    Steps,
    dynamic_float,
    integer,
)

ONE = Steps(torch.ones(()))
FLOATS = [(FP8_E4M3, torch.float8_e4m3fn), (FP8_E5M2, torch.float8_e5m2)]
GRIDS: list[Grid] = [FP8_E4M3, FP8_E5M2, FP4_E2M1, NF4, integer(4), integer(3, False), integer(8, True, True)]


def every_kind_of_float() -> Tensor:
    """Finite float32 numbers of every exponent, sign and pattern of the first bits of the fraction."""
    x = torch.arange(-(2**31), 2**31, 9973, dtype=torch.int64).to(torch.int32).view(torch.float32)
    return x[torch.isfinite(x)]


def around(points: Tensor) -> Tensor:
    """Points and their neighbours on either side."""
    up, down = torch.full_like(points, torch.inf), torch.full_like(points, -torch.inf)
    return torch.cat([points, torch.nextafter(points, up), torch.nextafter(points, down)])


def numbers_of(dtype: torch.dtype) -> Tensor:
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    found: Tensor = values[torch.isfinite(values)].unique()
    return found


@pytest.mark.parametrize(("grid", "dtype"), FLOATS, ids=str)
def test_fp8_is_torchs_cast(grid: Float8, dtype: torch.dtype) -> None:
    values = numbers_of(dtype)
    x = torch.cat([every_kind_of_float(), around((values[1:] + values[:-1]) / 2), around(values)])
    expected = x.clamp(-grid.largest, grid.largest).to(dtype).float()
    assert torch.equal(grid.round(x, ONE), expected)
    assert grid.largest == values.max()


@pytest.mark.parametrize(("grid", "dtype"), FLOATS, ids=str)
def test_fp8_of_float64_is_the_nearest_number(grid: Float8, dtype: torch.dtype) -> None:
    values = numbers_of(dtype).double()
    x = torch.cat([around((values[1:] + values[:-1]) / 2), torch.randn(2000).double() * 20])
    assert torch.equal((grid.round(x, ONE) - x).abs(), (values[:, None] - x).abs().amin(0))


@pytest.mark.parametrize(
    ("grid", "name"), [(FP8_E4M3, "float8_e4m3fn"), (FP8_E5M2, "float8_e5m2"), (FP4_E2M1, "float4_e2m1fn")]
)
def test_floats_are_those_of_ml_dtypes(grid: Grid, name: str) -> None:
    other = pytest.importorskip("ml_dtypes", reason="compares with ml_dtypes' number formats")
    x = torch.cat([torch.linspace(-7, 7, 40_001), around(torch.arange(-24, 25) / 4)])
    x = x.clamp(-grid.largest, grid.largest)
    expected = torch.from_numpy(x.numpy().astype(getattr(other, name)).astype("float32"))
    assert torch.equal(grid.round(x, ONE), expected)


def test_e2m1_has_these_values() -> None:
    sizes = [0.5, 1, 1.5, 2, 3, 4, 6]
    assert list(FP4_E2M1.values) == [*(-v for v in reversed(sizes)), 0, *sizes]


@pytest.mark.parametrize("grid", [NF4, FP4_E2M1, dynamic_float()], ids=lambda grid: grid.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codebooks_give_the_nearest_value(grid: Codebook, dtype: torch.dtype) -> None:
    values = torch.tensor(grid.values, dtype=dtype)
    edges = (values[1:] + values[:-1]) / 2
    far = torch.tensor([-1e30, 1e30, -torch.finfo(dtype).max, torch.finfo(dtype).max, 0.0, -0.0, 1e-40], dtype=dtype)
    x = torch.cat([around(edges), around(values), far, torch.linspace(-7, 7, 5000, dtype=dtype)])
    found = grid.round(x, ONE)
    assert bool(torch.isin(found, values).all())
    found, x, values = found.double(), x.double(), values.double()
    # The middle between two values is itself rounded, so very near it the other neighbour may be as good.
    least = (values[:, None] - x).abs().amin(0)
    assert torch.allclose((found - x).abs(), least, rtol=1e-12, atol=1e-7)


def test_ties_between_values_of_a_codebook_go_where_it_says() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    even = torch.tensor([0.0, 1, 1, 2, 2, 4, 4])
    assert FP4_E2M1.round(ties, ONE).tolist() == even.tolist()
    assert FP4_E2M1.round(-ties, ONE).tolist() == (-even).tolist()
    up, down = (Codebook("two", 1, True, (-1.0, 0.0, 1.0), (side, side)) for side in (True, False))
    assert up.round(torch.tensor([-0.5, 0.5]), ONE).tolist() == [0, 1]
    assert down.round(torch.tensor([-0.5, 0.5]), ONE).tolist() == [-1, 0]


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=40, unique=True), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_codebook_gives_the_nearest_value(points: list[float], seed: int) -> None:
    values = torch.tensor(sorted({0.0, *points}), dtype=torch.float64)
    grid = Codebook("any", 8, True, tuple(values.tolist()), (False,) * (len(values) - 1))
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 8
    least = (values[:, None] - x).abs().amin(0)
    assert torch.allclose((grid.round(x, ONE) - x).abs(), least, rtol=1e-12, atol=1e-14)


def test_codebooks_are_those_of_bitsandbytes() -> None:
    other: Any = pytest.importorskip("bitsandbytes.functional", reason="compares with bitsandbytes' codebooks")
    assert torch.equal(torch.tensor(NF4.values), other.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(torch.tensor(dynamic_float().values), other.create_dynamic_map())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rounding_again_changes_nothing(grid: Grid) -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(3))
    steps = grid.steps(x.amin(-1), x.amax(-1)).spread
    once = grid.round(x, steps)
    assert torch.equal(grid.round(once, steps), once)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_result_can_be_written_over_the_input(grid: Grid) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    steps = grid.steps(x.amin(-1), x.amax(-1)).spread
    expected = grid.round(x, steps)
    before = x.clone()
    grid.round(x, steps)
    assert torch.equal(x, before)
    assert grid.round(x, steps, out=x) is x
    assert torch.equal(x, expected)


def test_codes_can_be_chosen_under_another_scale_than_values_come_back() -> None:
    x = torch.tensor([0.0, 1.0, 2.4, -7.0])
    assert integer(4).round(x, Steps(torch.tensor(2.0), chosen_under=torch.tensor(1.0))).tolist() == [0, 2, 4, -14]
