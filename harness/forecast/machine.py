"""What this machine can do: how fast it multiplies matrices, and how much memory there is for one process."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

REPEATS = 20
ROWS, INNER, COLUMNS = 256, 1024, 1024
CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@cache
def measure_operations() -> float:
    """Floating-point operations per second of a float32 matrix product, with the threads of this process; about 0.1 s.

    The best of several products: what else runs on the machine only makes it slower.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    left, right = (rng.random(shape, dtype=np.float32) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * ROWS * INNER * COLUMNS / max(min(seconds), 1e-9)


def multiplies_bfloat16(flags: str | None = None) -> bool:
    """Whether the processor multiplies bfloat16 itself. flags: those of /proc/cpuinfo."""
    if flags is None:
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def total_memory(cgroup_files: tuple[str, ...] = CGROUP_FILES) -> int | None:
    """Bytes of memory that a process here can have: what the machine has, or less by a limit of its container."""
    limits = []
    with suppress(ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in cgroup_files:
        try:
            limits.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(limits, default=None)
