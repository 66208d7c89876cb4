"""The statistics of a pass as native code: each in one sweep over memory (``sweeps.cpp``), built once a machine.

    sweeps.cpp ─ the machine's own C++ compiler ─▶ <cache>/lm-shipcheck/<hash>.so ─ ctypes ─▶ Sweeps

About a tenth of the processor time of plain torch code for logits, a third to a seventh for module outputs. Sums run
in a fixed order, so that neither registers nor threads change a bit. Tensors that the code does not read (other
devices, other types) go to the plain functions, which also define what rows with NaN or infinity come to.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from harness.lockstep.logit_statistics import logit_sums
from harness.lockstep.module_statistics import channel_moments_in_cache, row_errors

SOURCE = Path(__file__).with_name("sweeps.cpp")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The types that the code reads."""
BUILD_SECONDS = 120
_Argument = ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float
LANES = 16
"""Values that the code takes at a time; rows of exponentials are kept in whole multiples of them."""
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-psabi")
_INSTRUCTIONS = {"AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"), "AVX2": ("-mavx2", "-mf16c")}
"""Compiler flags by what torch says of the processor, so that a build never holds instructions that it lacks: torch's
own code for AVX2 has those of F16C."""


class BuildError(Exception):
    """Why the code could not be built or loaded on this machine."""


def find_compiler() -> str | None:
    """The C++ compiler of this machine: ``CXX``, or what is usual."""
    return next((name for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if shutil.which(name)), None)


@cache
def build() -> Sweeps:
    """The code, compiled for this machine unless an earlier process did. Raises BuildError."""
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler was found (c++, g++, clang++ or $CXX)")
    flags = (*_FLAGS, *_INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ()))
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, check=True, timeout=BUILD_SECONDS, stdin=subprocess.DEVNULL
        ).stdout
        key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, *map(str.encode, flags)])).hexdigest()
        return Sweeps(ctypes.CDLL(str(_compile(compiler, flags, key))))
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        raise BuildError(f"{compiler} failed: {said[0] if said else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{type(error).__name__}: {error}") from error


def _compile(compiler: str, flags: Sequence[str], key: str) -> Path:
    """The library of this key, from the user's cache where it is there and nobody else can have written it."""
    folder = _own_folder(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lm-shipcheck")
    library = folder / f"{key}.so"
    if library.is_file() and _is_own(library):
        return library
    handle, made = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        subprocess.run(
            [compiler, *flags, "-o", made, str(SOURCE)],
            capture_output=True,
            check=True,
            timeout=BUILD_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        os.chmod(made, 0o700)
        os.replace(made, library)
    except BaseException:
        os.unlink(made)
        raise
    return library


def _own_folder(wanted: Path) -> Path:
    """The folder, made if need be; one for this process alone where it cannot be made or others may write to it."""
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="lm-shipcheck-"))
    return wanted if _is_own(wanted) and os.access(wanted, os.W_OK) else Path(tempfile.mkdtemp(prefix="lm-shipcheck-"))


def _is_own(path: Path) -> bool:
    """Whether the path is this user's, no link, and writable for nobody else."""
    found = path.lstat()
    return not path.is_symlink() and found.st_uid == os.geteuid() and not found.st_mode & 0o022


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
            self._call("logit_sums", r_NV[some], v_NV[some], out=out[:, some], then=[_pointer(kept)])

        _share(len(r_NV), sweep)
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
        _share(len(r_NH), lambda some: self._call("row_errors", r_NH[some], v_NH[some], out=out[:, some]))
        return tuple(out)

    def channel_moments(self, values_NH: Tensor, valid_N: Tensor, threshold: float) -> tuple[Tensor, ...]:
        """As ``harness.lockstep.module_statistics.channel_moments_in_cache``."""
        if not _readable(values_NH, values_NH):
            return channel_moments_in_cache(values_NH, valid_N, threshold)
        x_NH, valid = _in_rows(values_NH), valid_N.contiguous()
        out = torch.empty(5, x_NH.shape[1], dtype=torch.float64)

        def sweep(some: slice) -> None:
            self._call("channel_moments", x_NH[:, some], valid, out=out[:, some], between=[ctypes.c_float(threshold)])

        _share(x_NH.shape[1], sweep)
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
            *map(_pointer, (first, second)),
            *map(ctypes.c_int64, (*first.shape, *strides)),
            *between,
            _pointer(out),
            ctypes.c_int64(out.stride(0)),
            *then,
        )


def _readable(left: Tensor, right: Tensor) -> bool:
    return left.is_cpu and right.is_cpu and left.dtype == right.dtype and left.dtype in TYPES and left.numel() > 0


def _in_rows(values: Tensor) -> Tensor:
    return values if values.stride(1) == 1 else values.contiguous()


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _share(count: int, work: Callable[[slice], None]) -> None:
    """Do ``work`` on ranges of rows or columns, one for each of torch's threads."""
    threads = min(torch.get_num_threads(), count)
    bounds = [count * number // threads for number in range(threads + 1)]
    ranges = list(map(slice, bounds[:-1], bounds[1:]))
    if threads == 1:
        work(*ranges)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, ranges))
