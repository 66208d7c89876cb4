"""The statistics of a pass as Triton kernels, for GPUs. Legend: N rows, V vocabulary, H width.

    logits   one program a row, in two sweeps: maximum and sum of exponentials online, then whatever needs them
    errors   one program a row
    moments  one program for COLUMNS channels of ROWS rows; torch adds up the parts

A row takes no memory but that of its results. Values are read as they are stored and computed in float32; each lane of
a program has sums of its own, which are added up in float64 at its end. No multiplication is fused with an addition:
equal rows would no longer differ by exactly nothing. NaN and infinity come to what the plain functions make of them.
Tensors that the kernels do not read go to the plain functions.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.lockstep.logit_statistics import logit_sums as plain_logit_sums
from harness.lockstep.module_statistics import channel_moments_in_cache
from harness.lockstep.module_statistics import row_errors as plain_row_errors

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The types that the kernels read."""
MOST_LANES = 2048
"""The most values of a row that a program takes at a time."""
COLUMNS, ROWS, ROWS_AT_A_TIME = 64, 512, 16
"""What a program takes of channel moments."""
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
"""How the kernels are compiled."""
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_NOWHERE = tl.constexpr(2**25)  # As in harness.lockstep.logit_statistics.


@triton.jit
def _exponential(x):
    """e^x for x <= 0. Subnormal results are products, because the hardware's exponential may round them to zero."""
    small = x < -64.0
    return tl.exp(tl.where(small, x + 64.0, x)) * tl.where(small, 1.603810890548638e-28, 1.0)


@triton.jit
def _larger(most, values):
    """As torch's amax: once NaN, always NaN."""
    return tl.where((values > most) | (values != values), values, most)


@triton.jit
def _largest(lanes):
    """As torch's amax over the first axis."""
    broken = tl.max((lanes != lanes).to(tl.int32), 0) > 0
    return tl.where(broken, float("nan"), tl.max(tl.where(lanes != lanes, _LOWEST, lanes), 0))


@triton.jit
def _total(lanes):
    return tl.sum(lanes.to(tl.float64), 0)


@triton.jit
def _read(row, places, width, filling: tl.constexpr):
    return tl.load(row + places, mask=places < width, other=filling).to(tl.float32)


@triton.jit
def _find_maximum(row, width, LANES: tl.constexpr):
    """Maximum of a row, its first place, and the sum of e^(x - maximum), which is NaN where that is not finite.

    Online: each lane has the largest value so far, and a sum relative to it (M. Milakov, N. Gimelshein,
    arXiv:1805.02867).
    """
    most = tl.full((LANES,), _LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    top = tl.full((LANES,), _NOWHERE, tl.int32)
    for at in range(0, width, LANES):
        places = at + tl.arange(0, LANES)
        x = _read(row, places, width, float("-inf"))
        rise = x - most
        factor = _exponential(-tl.abs(rise))
        top = tl.where((rise > 0) | ((x == most) & (top == _NOWHERE)), places, top)
        total = tl.where(rise > 0, total * factor + 1.0, total + factor)
        most = _larger(most, x)
    highest = _largest(most)
    place = tl.min(tl.where(most == highest, top, _NOWHERE), 0)
    whole = _total(total * _exponential(most - highest))
    # Lanes begin at the lowest finite value with a sum of 0, and only rows of -infinity alone leave all of them so.
    masked = whole == 0
    highest = tl.where(masked, float("-inf"), highest)
    return highest, tl.where(masked, 0, place), tl.where(tl.abs(highest) < float("inf"), whole, float("nan"))


@triton.jit(do_not_specialize=["rows"])
def _logit_sums(reference, variant, out, row_r, row_v, width, rows, LANES: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    r, v, column = reference + number * row_r, variant + number * row_v, out + number
    max_r, top_r, sum_r = _find_maximum(r, width, LANES)
    max_v, top_v, sum_v = _find_maximum(v, width, LANES)
    share_r, share_v = 1.0 / sum_r.to(tl.float32), 1.0 / sum_v.to(tl.float32)
    forward = tl.zeros((LANES,), tl.float32)
    backward = tl.zeros((LANES,), tl.float32)
    spread_r = tl.zeros((LANES,), tl.float32)
    spread_v = tl.zeros((LANES,), tl.float32)
    most = tl.zeros((LANES,), tl.float32)
    size = tl.zeros((LANES,), tl.float32)
    variation = tl.zeros((LANES,), tl.float32)
    for at in range(0, width, LANES):
        places = at + tl.arange(0, LANES)
        x, y = _read(r, places, width, float("-inf")), _read(v, places, width, float("-inf"))
        a_r, a_v = x - max_r, y - max_v
        e_r, e_v = _exponential(a_r), _exponential(a_v)
        difference = tl.where(x == y, 0.0, x - y)
        forward += tl.where(e_r == 0, 0.0, e_r * difference)
        backward += tl.where(e_v == 0, 0.0, e_v * difference)
        spread_r += tl.where(e_r == 0, 0.0, e_r * a_r)
        spread_v += tl.where(e_v == 0, 0.0, e_v * a_v)
        most = _larger(most, tl.abs(difference))
        size += tl.abs(difference)
        variation += tl.abs(e_r * share_r - e_v * share_v)
    tl.store(column, max_r)
    tl.store(column + rows, max_v)
    tl.store(column + 2 * rows, top_r)
    tl.store(column + 3 * rows, top_v)
    tl.store(column + 4 * rows, sum_r)
    tl.store(column + 5 * rows, sum_v)
    tl.store(column + 6 * rows, _total(forward))
    tl.store(column + 7 * rows, _total(backward))
    tl.store(column + 8 * rows, _total(spread_r))
    tl.store(column + 9 * rows, _total(spread_v))
    tl.store(column + 10 * rows, _largest(most))
    tl.store(column + 11 * rows, _total(size))
    tl.store(column + 12 * rows, _total(variation))


@triton.jit(do_not_specialize=["rows"])
def _row_errors(reference, variant, out, row_r, row_v, width, rows, LANES: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    r, v, column = reference + number * row_r, variant + number * row_v, out + number
    lost = tl.zeros((LANES,), tl.float32)
    size_r = tl.zeros((LANES,), tl.float32)
    size_v = tl.zeros((LANES,), tl.float32)
    dot = tl.zeros((LANES,), tl.float32)
    most = tl.zeros((LANES,), tl.float32)
    for at in range(0, width, LANES):
        places = at + tl.arange(0, LANES)
        x, y = _read(r, places, width, 0.0), _read(v, places, width, 0.0)
        d = y - x
        lost += d * d
        size_r += x * x
        size_v += y * y
        dot += x * y
        most = _larger(most, tl.abs(d))
    tl.store(column, _total(lost))
    tl.store(column + rows, _total(size_r))
    tl.store(column + 2 * rows, _total(size_v))
    tl.store(column + 3 * rows, _total(dot))
    tl.store(column + 4 * rows, _largest(most))


@triton.jit(do_not_specialize=["rows"])
def _channel_moments(
    values, valid, out, row, rows, width, threshold,
    ROWS: tl.constexpr, ROWS_AT_A_TIME: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    most = tl.zeros((ROWS_AT_A_TIME, COLUMNS), tl.float32)
    first = tl.zeros((ROWS_AT_A_TIME, COLUMNS), tl.float32)
    second = tl.zeros((ROWS_AT_A_TIME, COLUMNS), tl.float32)
    fourth = tl.zeros((ROWS_AT_A_TIME, COLUMNS), tl.float32)
    over = tl.zeros((ROWS_AT_A_TIME, COLUMNS), tl.float32)
    for at in range(0, ROWS, ROWS_AT_A_TIME):
        numbers = part * ROWS + at + tl.arange(0, ROWS_AT_A_TIME)
        used = tl.load(valid + numbers, mask=numbers < rows, other=0) != 0
        places = numbers[:, None] * row + channels[None, :]
        x = tl.load(values + places, mask=used[:, None] & (channels < width)[None, :], other=0.0).to(tl.float32)
        size, square = tl.abs(x), x * x
        most = _larger(most, size)
        first += x
        second += square
        fourth += square * square
        over += (size >= threshold).to(tl.float32)
    column, inside = out + part * 5 * width + channels, channels < width
    tl.store(column, _largest(most), mask=inside)
    tl.store(column + width, _total(first), mask=inside)
    tl.store(column + 2 * width, _total(second), mask=inside)
    tl.store(column + 3 * width, _total(fourth), mask=inside)
    tl.store(column + 4 * width, _total(over), mask=inside)


def logit_sums(reference_NV: Tensor, variant_NV: Tensor) -> tuple[Tensor, ...]:
    """As ``harness.lockstep.logit_statistics.logit_sums``, in float64."""
    if not _readable(reference_NV, variant_NV):
        return plain_logit_sums(reference_NV, variant_NV)
    return _sweep_rows(_logit_sums, reference_NV, variant_NV, 13)


def row_errors(reference_NH: Tensor, variant_NH: Tensor) -> tuple[Tensor, ...]:
    """As ``harness.lockstep.module_statistics.row_errors``, in float64."""
    if not _readable(reference_NH, variant_NH):
        return plain_row_errors(reference_NH, variant_NH)
    return _sweep_rows(_row_errors, reference_NH, variant_NH, 5)


def channel_moments(values_NH: Tensor, valid_N: Tensor, threshold: float) -> tuple[Tensor, ...]:
    """As ``harness.lockstep.module_statistics.channel_moments_in_cache``."""
    if not _readable(values_NH, values_NH):
        return channel_moments_in_cache(values_NH, valid_N, threshold)
    x_NH, valid = _in_rows(values_NH), valid_N.contiguous().view(torch.uint8)
    rows, width = x_NH.shape
    parts = triton.cdiv(rows, ROWS)
    out = torch.empty(parts, 5, width, dtype=torch.float64, device=x_NH.device)
    with torch.cuda.device_of(x_NH):
        _channel_moments[triton.cdiv(width, COLUMNS), parts](
            x_NH, valid, out, x_NH.stride(0), rows, width, threshold, ROWS, ROWS_AT_A_TIME, COLUMNS, **OPTIONS
        )
    return out[:, 0].amax(0).float(), *out[:, 1:].sum(0)


def _sweep_rows(kernel: Any, reference_NW: Tensor, variant_NW: Tensor, results: int) -> tuple[Tensor, ...]:
    r_NW, v_NW = _in_rows(reference_NW), _in_rows(variant_NW)
    rows, width = r_NW.shape
    out = torch.empty(results, rows, dtype=torch.float64, device=r_NW.device)
    lanes = min(MOST_LANES, triton.next_power_of_2(width))
    with torch.cuda.device_of(r_NW):
        kernel[(rows,)](r_NW, v_NW, out, r_NW.stride(0), v_NW.stride(0), width, rows, lanes, **OPTIONS)
    return tuple(out)


def _readable(left: Tensor, right: Tensor) -> bool:
    reachable = left.is_cuda or triton.knobs.runtime.interpret
    same = left.device == right.device and left.dtype == right.dtype
    return bool(reachable and same and left.dtype in TYPES and left.numel() > 0)


def _in_rows(values: Tensor) -> Tensor:
    return values if values.stride(1) == 1 else values.contiguous()
