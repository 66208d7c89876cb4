"""The native statistics: the plain functions' numbers, exact zeros, the same bits whatever the threads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.lockstep import native
from harness.lockstep.logit_statistics import logit_statistics, logit_sums
from harness.lockstep.module_statistics import channel_moments, row_errors
from harness.lockstep.native import Sweeps
from harness.system import native_code
from harness.system.native_code import BuildError

needs_compiler = pytest.mark.skipif(native_code.find_compiler() is None, reason="this machine has no C++ compiler")
INFINITE, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module")
def sweeps() -> Sweeps:
    return native.build()


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that an empty cache gets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.build.cache_clear()
    yield tmp_path / "lm-shipcheck"
    native.build.cache_clear()


def two_sides(rows: int, width: int, dtype: torch.dtype, seed: int = 0, apart: float = 0.3) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, width, generator=chance) * 4
    return left.to(dtype), (left + apart * torch.randn(rows, width, generator=chance)).to(dtype)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, plain in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine.double(), plain.double(), rtol=2e-5, atol=2e-5, equal_nan=True)


@needs_compiler
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 2100),
    dtype=st.sampled_from(native.TYPES),
    seed=st.integers(0, 999),
)
def test_they_are_what_the_plain_functions_give(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    sweeps = native.build()
    left, right = two_sides(rows, width, dtype, seed)
    assert_same(sweeps.logit_sums(left, right), logit_sums(left, right))
    assert_same(sweeps.row_errors(left, right), row_errors(left, right))
    valid = torch.arange(rows) % 3 != 1
    assert_same(sweeps.channel_moments(left, valid, 4.0), channel_moments(left, valid, 4.0))


@needs_compiler
@pytest.mark.parametrize("dtype", native.TYPES)
def test_they_are_close_to_float64_where_a_row_is_long(sweeps: Sweeps, dtype: torch.dtype) -> None:
    left, right = two_sides(3, 50_000, dtype)
    targets = torch.tensor([0, 77, 49_999])
    found = logit_statistics(left, right, targets, sweeps.logit_sums)
    log_r, log_v = (side.double().log_softmax(-1) for side in (left, right))
    kl = (log_r.exp() * (log_r - log_v)).sum(-1)
    torch.testing.assert_close(found["kl"], kl, rtol=2e-6, atol=0)
    torch.testing.assert_close(found["reference_nll"], -log_r[range(3), targets], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        found["total_variation"], (log_r.exp() - log_v.exp()).abs().sum(-1) / 2, rtol=2e-6, atol=0
    )
    assert found["variant_top1"].tolist() == right.float().argmax(-1).tolist()


@needs_compiler
@pytest.mark.parametrize("dtype", native.TYPES)
def test_equal_rows_differ_by_exactly_nothing(sweeps: Sweeps, dtype: torch.dtype) -> None:
    left, _ = two_sides(5, 1000, dtype)
    left[2, 7] = -INFINITE
    found = logit_statistics(left, left.clone(), torch.zeros(5, dtype=torch.int64), sweeps.logit_sums)
    for name in ("kl", "reverse_kl", "max_abs_diff", "mean_abs_diff", "total_variation"):
        assert (found[name] == 0).all(), name
    assert all((sums == 0).all() for sums in (*sweeps.row_errors(left[3:], left[3:].clone())[:1],))


@needs_compiler
@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize("side", ["reference", "variant", "both"])
def test_nan_and_infinity_come_to_what_plain_code_says(sweeps: Sweeps, value: float, side: str) -> None:
    for column in (0, 15, 16, 36):
        left, right = two_sides(4, 37, torch.float32)
        if side != "variant":
            left[1, column] = value
        if side != "reference":
            right[1, column] = value
        assert_same(sweeps.logit_sums(left, right), logit_sums(left, right))
        assert_same(sweeps.row_errors(left, right), row_errors(left, right))
        for valid in (torch.tensor([True] * 4), torch.tensor([True, False, True, True])):
            assert_same(sweeps.channel_moments(left, valid, 4.0), channel_moments(left, valid, 4.0))


@needs_compiler
def test_a_row_of_masks_alone_has_no_likelihoods(sweeps: Sweeps) -> None:
    left, right = torch.full((2, 20), -INFINITE), torch.zeros(2, 20)
    assert_same(sweeps.logit_sums(left, right), logit_sums(left, right))


@needs_compiler
def test_probabilities_that_are_all_but_zero_still_count(sweeps: Sweeps) -> None:
    """e^−95 is subnormal: where the other side gives 0 there, the divergence is infinite."""
    left, right = torch.tensor([[0.0, -95.0]]), torch.tensor([[0.0, -INFINITE]])
    assert sweeps.logit_sums(left, right)[6].item() == INFINITE == logit_sums(left, right)[6].item()


@needs_compiler
def test_threads_and_strides_change_no_bit(sweeps: Sweeps) -> None:
    left, right = two_sides(41, 700, torch.float32)
    valid = torch.arange(41) % 5 != 0

    def find() -> list[Tensor]:
        a, b = left[:, 3:650], right[:, 3:650]
        return [*sweeps.logit_sums(a, b), *sweeps.row_errors(a, b), *sweeps.channel_moments(a, valid, 2.0)]

    before, threads = find(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        after = find()
    finally:
        torch.set_num_threads(threads)
    copies = left[:, 3:650].contiguous(), right[:, 3:650].contiguous()
    whole = [*sweeps.logit_sums(*copies), *sweeps.row_errors(*copies), *sweeps.channel_moments(copies[0], valid, 2.0)]
    turned = sweeps.logit_sums(left.T.contiguous().T, right)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert all(torch.equal(*pair) for pair in zip(before, whole, strict=True))
    assert all(torch.equal(*pair) for pair in zip(turned, sweeps.logit_sums(left, right), strict=True))


@needs_compiler
def test_what_the_code_does_not_read_goes_to_the_plain_functions(sweeps: Sweeps) -> None:
    double, other = two_sides(3, 20, torch.float64)
    assert_same(sweeps.logit_sums(double, other), logit_sums(double, other))
    assert_same(sweeps.row_errors(double.float(), other.bfloat16()), row_errors(double.float(), other.bfloat16()))
    assert_same(
        sweeps.channel_moments(double, torch.ones(3, dtype=torch.bool), 1.0),
        channel_moments(double, torch.ones(3, dtype=torch.bool), 1.0),
    )
    assert [len(sums) for sums in sweeps.row_errors(double[:0].float(), other[:0].float())] == [0] * 5


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("capability", ["this machine's", "none"])
def test_every_number_of_two_bytes_is_read_exactly(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capability: str, dtype: torch.dtype
) -> None:
    """Those of a channel each, whose sum over one row is the number. Without instructions, bits are moved about."""
    if capability == "none":
        monkeypatch.setattr(native_code, "_INSTRUCTIONS", {})
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    numbers = numbers[torch.arange(len(numbers)) % 16 != 3]  # The last ones are no whole vector.
    for some in (numbers, numbers[:-5]):
        found = native.build().channel_moments(some[None], torch.tensor([True]), 1.0)[1]
        torch.testing.assert_close(found, some.double(), rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("dtype", native.TYPES)
def test_the_width_of_registers_changes_no_bit(
    sweeps: Sweeps, fresh: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    left, right = two_sides(5, 1003, dtype)
    valid = torch.arange(5) != 2
    monkeypatch.setattr(native_code, "_INSTRUCTIONS", {})
    narrow = native.build()
    assert narrow.library._name != sweeps.library._name
    for name, *arguments in (("logit_sums", right), ("row_errors", right), ("channel_moments", valid, 4.0)):
        one, other = (getattr(made, name)(left, *arguments) for made in (sweeps, narrow))
        assert torch.equal(torch.stack([*one[1:]]), torch.stack([*other[1:]])), name
        assert torch.equal(one[0], other[0]), name


@needs_compiler
@pytest.mark.parametrize("dtype", native.TYPES)
def test_how_many_rows_come_at_a_time_changes_no_bit(sweeps: Sweeps, dtype: torch.dtype) -> None:
    """So the chunk of a pass may be of any size."""
    left, right = two_sides(23, 1000, dtype)
    left[4, 7] = right[9, 9] = NAN
    for kernel in (sweeps.logit_sums, sweeps.row_errors):
        whole = torch.stack(kernel(left, right))
        for rows in (1, 7, 16):
            pieces = zip(torch.split(left, rows), torch.split(right, rows), strict=True)
            parts = torch.cat([torch.stack(kernel(*piece)) for piece in pieces], dim=1)
            torch.testing.assert_close(parts, whole, rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_it_is_built_once_a_machine(fresh: Path) -> None:
    native.build()
    (library,) = fresh.glob("*.so")
    written = library.stat().st_mtime_ns
    native.build.cache_clear()
    native.build()
    assert library.stat().st_mtime_ns == written
    assert list(fresh.iterdir()) == [library]


@needs_compiler
def test_a_library_that_others_could_have_written_is_not_loaded(fresh: Path) -> None:
    native.build()
    (library,) = fresh.glob("*.so")
    library.write_bytes(b"somebody else's")
    library.chmod(0o777)
    native.build.cache_clear()
    native.build()
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    assert library.read_bytes().startswith(b"\x7fELF")
    fresh.chmod(0o777)
    library.unlink()
    native.build.cache_clear()
    native.build()
    assert not library.exists()


def test_a_compiler_that_fails_is_named(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit 0\necho no such header >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(BuildError, match="no such header"):
        native.build()
    assert not list(fresh.glob("*"))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", os.fspath(tmp_path / "nothing"))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler was found"):
        native.build()
