"""Native code: C++ sources of the harness, compiled for this machine by its own compiler, once.

    source, lanes.hpp ─ the machine's own C++ compiler ─▶ <cache>/lm-shipcheck/<hash>.so ─ ctypes ─▶ the library

Whoever uses a library has plain code that does the same, for machines without a compiler.
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
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HEADER = Path(__file__).with_name("lanes.hpp")
"""Vectors, for all sources."""
BUILD_SECONDS = 120
LANES = 16
"""Values that the code takes at a time."""
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-psabi")
_INSTRUCTIONS = {"AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"), "AVX2": ("-mavx2", "-mf16c")}
"""Compiler flags by what torch says of the processor, so that a build never holds instructions that it lacks: torch's
own code for AVX2 has those of F16C."""


class BuildError(Exception):
    """Why the code could not be built or loaded on this machine."""


def find_compiler() -> str | None:
    """The C++ compiler of this machine: ``CXX``, or what is usual."""
    return next((name for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if shutil.which(name)), None)


def load_library(source: Path) -> ctypes.CDLL:
    """The code of a source, compiled for this machine unless an earlier process did. Raises BuildError."""
    import torch

    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler was found (c++, g++, clang++ or $CXX)")
    flags = (*_FLAGS, *_INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ()))
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, check=True, timeout=BUILD_SECONDS, stdin=subprocess.DEVNULL
        ).stdout
        texts = [source.read_bytes(), HEADER.read_bytes(), version, *map(str.encode, flags)]
        key = hashlib.sha256(b"\0".join(texts)).hexdigest()
        return ctypes.CDLL(str(_compile(compiler, flags, source, key)))
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        raise BuildError(f"{compiler} failed: {said[0] if said else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{type(error).__name__}: {error}") from error


def _compile(compiler: str, flags: Sequence[str], source: Path, key: str) -> Path:
    """The library of this key, from the user's cache where it is there and nobody else can have written it."""
    folder = _own_folder(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lm-shipcheck")
    library = folder / f"{key}.so"
    if library.is_file() and _is_own(library):
        return library
    handle, made = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        subprocess.run(
            [compiler, *flags, f"-I{HEADER.parent}", "-o", made, str(source)],
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


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """The address of the first value of a tensor, which must outlive it."""
    return ctypes.c_void_p(tensor.data_ptr())


def share(count: int, work: Callable[[slice], None]) -> None:
    """Do ``work`` on ranges of rows or columns, one for each of torch's threads."""
    import torch

    threads = min(torch.get_num_threads(), count)
    bounds = [count * number // threads for number in range(threads + 1)]
    ranges = list(map(slice, bounds[:-1], bounds[1:]))
    if threads == 1:
        work(*ranges)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, ranges))
