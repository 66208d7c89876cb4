"""The statistics of a pass as native code: each in one sweep over memory (``sweeps.cpp``), built once a machine.

    sweeps.cpp ─ the machine's own C++ compiler ─▶ <cache>/lm-shipcheck/<hash>.so ─ ctypes ─▶ Sweeps

About a tenth of the processor time of plain torch code for logits, a third to a seventh for module outputs. Sums run
in a fixed order, so that neither registers nor threads change a bit. Tensors that the code does not read (other
devices, other types) go to the plain functions, which also define what rows with NaN or infinity come to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from harness.lockstep.logit_statistics import logit_sums
from harness.lockstep.module_statistics import channel_moments_in_cache, row_errors
from harness.system.native_code import LANES, load_library, pointer, share

SOURCE = Path(__file__).with_name("sweeps.cpp")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The types that the code reads."""
_Argument = ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float


@cache
def build() -> Sweeps:
    """The code, compiled for this machine unless an earlier process did. Raises BuildError."""
    return Sweeps(load_library(SOURCE))


@dataclass(frozen=True)
class Sweeps:
    """The three kernels of a pass (see harness.lockstep.kernels) in native code."""

    library: ctypes.CDLL

    def logit_sums(self, reference_NV: Tensor, variant_NV: Tensor) -> tuple[Tensor, ...]:
        """As ``harness.lockstep.logit_statistics.logit_sums``, in float64."""
        if not _readable(reference_NV, variant_NV):
            return logit_sums(reference_NV, variant_NV)
        r_NV, v_NV = _in_rows(reference_NV), _in_rows(variant_NV)
        out = torch.empty(13, len(r_NV), dtype=torch.float64)

        def sweep(some: slice) -> None:
            kept = torch.empty(2 * (r_NV.shape[1] + LANES))
            self._call("logit_sums", r_NV[some], v_NV[some], out=out[:, some], then=[pointer(kept)])

        share(len(r_NV), sweep)
        # Whatever NaN and infinity come to is for the plain code to say.
        if len(odd := torch.nonzero(~torch.isfinite(out[:2]).all(0))[:, 0]):
            out[:, odd] = torch.stack(logit_sums(r_NV[odd], v_NV[odd])).double()
        return tuple(out)

    def row_errors(self, reference_NH: Tensor, variant_NH: Tensor) -> tuple[Tensor, ...]:
        """As ``harness.lockstep.module_statistics.row_errors``, in float64."""
        if not _readable(reference_NH, variant_NH):
            return row_errors(reference_NH, variant_NH)
        r_NH, v_NH = _in_rows(reference_NH), _in_rows(variant_NH)
        out = torch.empty(5, len(r_NH), dtype=torch.float64)
        share(len(r_NH), lambda some: self._call("row_errors", r_NH[some], v_NH[some], out=out[:, some]))
        return tuple(out)

    def channel_moments(self, values_NH: Tensor, valid_N: Tensor, threshold: float) -> tuple[Tensor, ...]:
        """As ``harness.lockstep.module_statistics.channel_moments_in_cache``."""
        if not _readable(values_NH, values_NH):
            return channel_moments_in_cache(values_NH, valid_N, threshold)
        x_NH, valid = _in_rows(values_NH), valid_N.contiguous()
        out = torch.empty(5, x_NH.shape[1], dtype=torch.float64)

        def sweep(some: slice) -> None:
            self._call("channel_moments", x_NH[:, some], valid, out=out[:, some], between=[ctypes.c_float(threshold)])

        share(x_NH.shape[1], sweep)
        return out[0].float(), *out[1:]

    def _call(
        self,
        name: str,
        first: Tensor,
        second: Tensor,
        out: Tensor,
        between: Sequence[_Argument] = (),
        then: Sequence[_Argument] = (),
    ) -> None:
        """Call the function for the type of ``first`` [N, H]. out: a column for each row, or for each channel."""
        strides = [each.stride(0) for each in (first, second) if each.dim() > 1]
        self.library[f"{name}_{str(first.dtype).removeprefix('torch.')}"](
            *map(pointer, (first, second)),
            *map(ctypes.c_int64, (*first.shape, *strides)),
            *between,
            pointer(out),
            ctypes.c_int64(out.stride(0)),
            *then,
        )


def _readable(left: Tensor, right: Tensor) -> bool:
    return left.is_cpu and right.is_cpu and left.dtype == right.dtype and left.dtype in TYPES and left.numel() > 0


def _in_rows(values: Tensor) -> Tensor:
    return values if values.stride(1) == 1 else values.contiguous()
