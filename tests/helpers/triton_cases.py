"""Cases for the Triton kernels under Triton's interpreter, which must be on before Triton is imported: they are run by
tests/lockstep/test_triton_sweeps.py in a process of their own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.lockstep.logit_statistics import logit_statistics, logit_sums
from harness.lockstep.module_statistics import channel_moments, row_errors

INFINITE, NAN = float("inf"), float("nan")
TYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels, with small pieces, so that few values are several."""
    from harness.lockstep import triton_sweeps

    small = {"MOST_LANES": 16, "COLUMNS": 16, "ROWS": 8, "ROWS_AT_A_TIME": 4}
    for name, size in small.items():
        monkeypatch.setattr(triton_sweeps, name, size)
    return triton_sweeps


def two_sides(rows: int, width: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, width, generator=chance) * 4
    return left.to(dtype), (left + 0.3 * torch.randn(rows, width, generator=chance)).to(dtype)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, plain in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine.double(), plain.double(), rtol=2e-5, atol=2e-5, equal_nan=True)


def assert_all_same(sweeps: Any, left: Tensor, right: Tensor) -> None:
    assert_same(sweeps.logit_sums(left, right), logit_sums(left, right))
    assert_same(sweeps.row_errors(left, right), row_errors(left, right))
    for valid in (torch.ones(len(left), dtype=torch.bool), torch.arange(len(left)) % 3 != 1):
        assert_same(sweeps.channel_moments(left, valid, 4.0), channel_moments(left, valid, 4.0))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 16), (3, 77), (9, 130), (19, 15)])
def test_any_shape(sweeps: Any, rows: int, width: int, dtype: torch.dtype) -> None:
    assert_all_same(sweeps, *two_sides(rows, width, dtype))


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize("side", ["reference", "variant", "both"])
def test_nan_and_infinity(sweeps: Any, value: float, side: str) -> None:
    for columns in ([0], [15], [16], [36], [3, 19]):
        left, right = two_sides(4, 37, torch.float32)
        if side != "variant":
            left[1, columns] = value
        if side != "reference":
            right[1, columns] = value
        assert_all_same(sweeps, left, right)


def test_rows_of_masks_alone_and_of_the_lowest_numbers(sweeps: Any) -> None:
    lowest = torch.finfo(torch.float32).min
    left = torch.tensor([[-INFINITE] * 20, [lowest] * 20, [lowest] * 19 + [1.0], [lowest] * 3 + [-INFINITE] * 17])
    assert_same(sweeps.logit_sums(left, left.flip(0)), logit_sums(left, left.flip(0)))


def test_a_maximum_that_rises_all_the_time(sweeps: Any) -> None:
    """Each block rescales what came before it, down to nothing."""
    left = torch.stack([torch.arange(100.0), torch.arange(100.0) * 9, -torch.arange(100.0), torch.zeros(100)])
    assert_same(sweeps.logit_sums(left, left.flip(1)), logit_sums(left, left.flip(1)))


@pytest.mark.parametrize("dtype", TYPES)
def test_equal_rows_differ_by_exactly_nothing(sweeps: Any, dtype: torch.dtype) -> None:
    left, _ = two_sides(5, 100, dtype)
    left[2, 7] = -INFINITE
    found = logit_statistics(left, left.clone(), torch.zeros(5, dtype=torch.int64), sweeps.logit_sums)
    for name in ("kl", "reverse_kl", "max_abs_diff", "mean_abs_diff", "total_variation"):
        assert (found[name] == 0).all(), name
    assert (sweeps.row_errors(left[3:], left[3:].clone())[0] == 0).all()


def test_probabilities_that_are_all_but_zero_still_count(sweeps: Any) -> None:
    left, right = torch.tensor([[0.0, -95.0]]), torch.tensor([[0.0, -INFINITE]])
    assert sweeps.logit_sums(left, right)[6].item() == INFINITE == logit_sums(left, right)[6].item()


def test_strides_and_how_many_rows_come_at_a_time_change_no_bit(sweeps: Any) -> None:
    left, right = (side[:, 3:90] for side in two_sides(11, 100, torch.bfloat16))
    for kernel in (sweeps.logit_sums, sweeps.row_errors):
        whole = torch.stack(kernel(left, right))
        pieces = zip(torch.split(left, 4), torch.split(right, 4), strict=True)
        assert torch.equal(torch.cat([torch.stack(kernel(*piece)) for piece in pieces], dim=1), whole)
        turned = kernel(left.T.contiguous().T, right.contiguous())
        assert torch.equal(torch.stack(turned), whole)


def test_what_the_kernels_do_not_read_goes_to_the_plain_functions(sweeps: Any) -> None:
    left, right = two_sides(3, 20, torch.float64)
    assert_all_same(sweeps, left, right)
    assert_same(sweeps.row_errors(left.float(), right.bfloat16()), row_errors(left.float(), right.bfloat16()))
    assert [len(sums) for sums in sweeps.row_errors(left[:0].float(), right[:0].float())] == [0] * 5
