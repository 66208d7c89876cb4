"""Chooses the implementation of a pass's statistics: kernels of the device, the plain functions compiled and fused, or
plain torch.

A device's own kernels (native code on a CPU, Triton on a GPU) are taken wherever they can be built, which takes seconds
once a machine. Elsewhere, compiling takes about ten seconds in every process and then saves more than half of the work
per token, so it depends on the amount of work. The choice depends on the plan and the machine only: the same plan uses
the same kernels in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from harness.lockstep import native
from harness.lockstep.logit_statistics import LogitKernel, logit_sums, logit_sums_in_cache
from harness.lockstep.module_statistics import (
    ErrorKernel,
    MomentKernel,
    channel_moments,
    channel_moments_in_cache,
    row_errors,
    row_errors_in_cache,
)
from harness.lockstep.pass_report import Name
from harness.system import native_code

Choice = Literal["auto"] | Name

WORTH_COMPILING = 20_000 * 32_000
"""Tokens times vocabulary size from which compiling pays off."""


@dataclass(frozen=True)
class Kernels:
    """The three kernels. note: why plain ones replace faster ones, or nothing."""

    name: Name
    logits: LogitKernel
    errors: ErrorKernel
    moments: MomentKernel
    note: str = ""


EAGER = Kernels("eager", logit_sums_in_cache, row_errors_in_cache, channel_moments_in_cache)


def choose_kernels(choice: Choice, tokens: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Kernels:
    """The kernels for ``tokens`` scored tokens of one dtype; ``auto`` takes the fastest that pay off and are possible.

    All but the plain kernels must agree with those on a sample; if they cannot be built or do not agree, the next
    slower ones are used and the note says so.
    """
    if choice == "eager":
        return EAGER
    own = _find_own(dtype, device) if choice == "auto" else choice
    if own in ("native", "triton"):
        found = _try(own, dtype, device)
        if isinstance(found, Kernels):
            return found
        if choice == own:
            return _fall_back(found)
    if choice == "auto" and tokens * vocabulary < WORTH_COMPILING:
        return EAGER
    if device.type == "cpu" and native_code.find_compiler() is None:
        return _fall_back("no C++ compiler was found (c++, g++, clang++ or $CXX)")
    found = _try("compiled", dtype, device)
    return found if isinstance(found, Kernels) else _fall_back(found)


def _find_own(dtype: torch.dtype, device: torch.device) -> Name | None:
    """The kernels made for a device, if it has some that read the dtype."""
    if dtype not in native.TYPES:
        return None
    if device.type == "cuda":
        return "triton" if find_spec("triton") else None
    return "native" if device.type == "cpu" else None


def _try(name: Name, dtype: torch.dtype, device: torch.device) -> Kernels | str:
    """These kernels, or why they cannot be used."""
    try:
        made = _MAKERS[name]()
        differing = _find_differing(made, dtype, device)
    except Exception as error:  # noqa: BLE001 - compilers may fail in any way, and results do not depend on them
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return f"the {name} {differing} differ from the plain ones on a sample" if differing else made


def _make_native() -> Kernels:
    sweeps = native.build()
    return Kernels("native", sweeps.logit_sums, sweeps.row_errors, sweeps.channel_moments)


def _make_triton() -> Kernels:
    from harness.lockstep import triton_sweeps

    return Kernels("triton", triton_sweeps.logit_sums, triton_sweeps.row_errors, triton_sweeps.channel_moments)


def _make_compiled() -> Kernels:
    return Kernels("compiled", _compiled_logits(), _compiled_errors(), _compiled_moments())


_MAKERS: dict[Name, Callable[[], Kernels]] = {
    "native": _make_native,
    "triton": _make_triton,
    "compiled": _make_compiled,
}


def _fall_back(reason: str) -> Kernels:
    note = f"the pass ran with plain kernels, which is slower but gives the same numbers: {reason}"
    return Kernels(EAGER.name, EAGER.logits, EAGER.errors, EAGER.moments, note)


# Sizes vary between calls, so they are compiled as variables; a size of one would trigger a separate compilation, so
# single rows use the plain kernel. Contiguous inputs keep the number of compiled versions at one per dtype.


def _compiled_logits() -> LogitKernel:
    fused = torch.compile(logit_sums, dynamic=True, fullgraph=True)

    def kernel(reference_NV: Tensor, variant_NV: Tensor) -> tuple[Tensor, ...]:
        if len(reference_NV) == 1:
            return logit_sums(reference_NV, variant_NV)
        return fused(reference_NV.contiguous(), variant_NV.contiguous())

    return kernel


def _compiled_errors() -> ErrorKernel:
    fused = torch.compile(row_errors, dynamic=True, fullgraph=True)

    def kernel(reference_NH: Tensor, variant_NH: Tensor) -> tuple[Tensor, ...]:
        if min(reference_NH.shape) == 1:
            return row_errors(reference_NH, variant_NH)
        return fused(reference_NH.contiguous(), variant_NH.contiguous())

    return kernel


def _compiled_moments() -> MomentKernel:
    fused = torch.compile(channel_moments, dynamic=True, fullgraph=True)

    def kernel(values_NH: Tensor, valid_N: Tensor, threshold: float) -> tuple[Tensor, ...]:
        if min(values_NH.shape) == 1:
            return channel_moments(values_NH, valid_N, threshold)
        return fused(values_NH.contiguous(), valid_N, threshold)

    return kernel


def _find_differing(compiled: Kernels, dtype: torch.dtype, device: torch.device) -> str:
    """Name of a compiled kernel that disagrees with the plain one on a sample ("" if none does)."""
    random = torch.Generator().manual_seed(0)
    left = (torch.randn(9, 77, generator=random) * 4).to(device, dtype)
    right = left + (torch.randn(9, 77, generator=random) / 4).to(device, dtype)
    left[1, 5] = right[1, 5] = right[2, 6] = float("-inf")
    right[3, 7] = float("nan")
    right[8] = left[8]
    valid = torch.arange(9, device=device) != 3
    pairs = {
        "logit statistics": (compiled.logits(left, right), logit_sums(left, right)),
        "layer errors": (compiled.errors(left, right), row_errors(left, right)),
        "channel moments": (compiled.moments(left, valid, 6.0), channel_moments(left, valid, 6.0)),
    }
    for name, (actual, expected) in pairs.items():
        if not all(_agrees(found, wanted) for found, wanted in zip(actual, expected, strict=True)):
            return name
    return ""


def _agrees(found: Tensor, wanted: Tensor) -> bool:
    """Whether sums are the same up to rounding; what comes to exactly nothing, as in equal rows, must stay so."""
    close = torch.allclose(found.double(), wanted.double(), rtol=1e-4, atol=1e-4, equal_nan=True)
    return close and bool((found[wanted == 0] == 0).all())
