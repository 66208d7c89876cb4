"""Native code about blocks of values: the answers of plain torch code, whatever the threads and the registers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.modules.grid_check import count_distinct, lies_on_grid
from harness.numerics import native
from harness.numerics.formats import Format, quantize
from harness.numerics.granularity import Blocks
from harness.numerics.grids import FP4_E2M1, FP8_E4M3, FP8_E5M2, NF4, Grid, dynamic_float, integer
from harness.system import native_code

pytestmark = pytest.mark.skipif(native_code.find_compiler() is None, reason="this machine has no C++ compiler")
GRIDS: list[Grid] = [integer(2), integer(4), integer(4, False), integer(8), FP8_E4M3, FP8_E5M2, FP4_E2M1, NF4]


def on_grid(grid: Grid, rows: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Blocks of which every third was rounded, the others changed a little."""
    chance = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=chance) * torch.logspace(-3, 2, rows)[:, None]
    rounded = quantize(values, Format(grid, Blocks("channel"))).values
    factors = 1 + torch.rand(rows, width, generator=chance) * (torch.arange(rows) % 3)[:, None] * 0.02
    return (rounded * factors).to(dtype)


def lie_on_grid(blocks: Tensor, grid: Grid) -> Tensor:
    symmetric = grid if grid.symmetric else integer(grid.bits + 1)
    info = torch.finfo(blocks.dtype)
    tolerance = 1.25 * info.eps + 4 * torch.finfo(torch.float32).eps, 1.25 * info.tiny * info.eps
    sizes = sorted({abs(size) for size in values_of(symmetric) if size}, reverse=True)
    return native.build().lie_on_grid(blocks, symmetric, sizes, not grid.symmetric, *tolerance)


def values_of(grid: Grid) -> list[float]:
    if hasattr(grid, "code_range"):
        return list(map(float, range(grid.code_range[0], grid.code_range[1] + 1)))
    if hasattr(grid, "values"):
        return list(grid.values)
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(grid.dtype).float()  # type: ignore[attr-defined]
    return [value for value in every.tolist() if abs(value) < float("inf")]


@settings(max_examples=60, deadline=None)
@given(
    grid=st.sampled_from(GRIDS),
    rows=st.integers(1, 30),
    width=st.integers(1, 300),
    dtype=st.sampled_from(native.TYPES),
    seed=st.integers(0, 999),
)
def test_blocks_lie_on_a_grid_where_plain_code_says_so(
    grid: Grid, rows: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    blocks = on_grid(grid, rows, width, dtype, seed)
    expected = lies_on_grid(blocks, grid, dtype)
    assert expected[::3].all()
    assert torch.equal(lie_on_grid(blocks, grid), expected)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [0, 15, 16, 36])
def test_a_block_with_nan_or_infinity_lies_on_no_grid(grid: Grid, value: float, column: int) -> None:
    blocks = torch.zeros(3, 37)
    blocks[1, column] = value
    assert lie_on_grid(blocks, grid).tolist() == [True, False, True]


def test_one_wrong_value_anywhere_is_seen() -> None:
    blocks = quantize(torch.randn(300, 300, generator=torch.Generator().manual_seed(1)), FORM).values
    largest = blocks.abs().amax(-1)
    off = torch.arange(300)
    assert lie_on_grid(blocks, FORM.grid).all()
    blocks[off, off] = largest * 0.0371
    assert not lie_on_grid(blocks, FORM.grid).any()


FORM = Format(integer(4), Blocks("channel"))


def test_threads_change_nothing_and_strides_do_not_matter() -> None:
    blocks = on_grid(FORM.grid, 41, 70, torch.bfloat16, 5)
    before, threads = lie_on_grid(blocks, FORM.grid), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(lie_on_grid(blocks, FORM.grid), before)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(lie_on_grid(blocks.T.contiguous().T, FORM.grid), before)


def test_the_width_of_registers_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [on_grid(grid, 40, 75, torch.bfloat16, 3) for grid in GRIDS]
    wide = [lie_on_grid(some, grid) for some, grid in zip(blocks, GRIDS, strict=True)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_code, "_INSTRUCTIONS", {})
    native.build.cache_clear()
    try:
        for some, grid, expected in zip(blocks, GRIDS, wide, strict=True):
            assert torch.equal(lie_on_grid(some, grid), expected), grid.name
        (library,) = tmp_path.rglob("*.so")
        assert native.build().library._name == str(library)
    finally:
        native.build.cache_clear()


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 50), width=st.integers(1, 70), seed=st.integers(0, 99), dtype=st.sampled_from([0, 1]))
def test_distinct_values_are_counted_as_plain_code_counts(rows: int, width: int, seed: int, dtype: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    values = torch.randint(-9, 10, (2 * rows, width), generator=chance) * 0.25
    values[0, ::2] = -0.0
    blocks = values.to((torch.bfloat16, torch.float16)[dtype])
    for some in (blocks, blocks[::2], blocks[:1]):
        assert native.build().count_distinct(some) == count_distinct(some)


def test_what_the_code_does_not_read_is_said() -> None:
    sweeps, blocks = native.build(), torch.zeros(2, 8)
    assert all(sweeps.reads(blocks.to(dtype), grid) for dtype in native.TYPES for grid in GRIDS)
    assert not sweeps.reads(blocks.double(), GRIDS[0])
    assert not sweeps.reads(blocks[:0], GRIDS[0])
    assert not sweeps.reads(blocks, dynamic_float()), "256 values, compared one by one"
    assert sweeps.counts(blocks.bfloat16())
    assert not sweeps.counts(blocks)
    assert not sweeps.counts(blocks.bfloat16().T)
