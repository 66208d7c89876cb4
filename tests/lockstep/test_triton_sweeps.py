"""The Triton kernels: the plain functions' numbers under Triton's interpreter, on a CPU; code for GPUs without fusing.

What a GPU makes of the kernels is compared with the plain functions on a sample as a pass begins (``choose_kernels``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
CASES = Path(__file__).parents[1] / "helpers" / "triton_cases.py"
POINTERS = {"reference": "*{}", "variant": "*{}", "values": "*{}", "out": "*fp64", "valid": "*u8", "threshold": "fp32"}


def test_the_arithmetic_is_that_of_the_plain_functions() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert "passed" in run.stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_they_compile_for_a_gpu_and_nothing_is_fused(
    dtype: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a multiplication fused with an addition, equal rows differ by rounding; no GPU is needed to see it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from harness.lockstep import triton_sweeps as sweeps

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows = {"LANES": sweeps.MOST_LANES}
    columns = {"ROWS": sweeps.ROWS, "ROWS_AT_A_TIME": sweeps.ROWS_AT_A_TIME, "COLUMNS": sweeps.COLUMNS}
    kernels = ((sweeps._logit_sums, rows), (sweeps._row_errors, rows), (sweeps._channel_moments, columns))
    for kernel, sizes in kernels:
        signature = {name: POINTERS.get(name, "i32").format(dtype) for name in kernel.arg_names}
        source = ASTSource(kernel, signature | dict.fromkeys(sizes, "constexpr"), sizes)
        made = triton.compile(source, GPUTarget("cuda", capability, 32), options=sweeps.OPTIONS)
        assert made.asm["cubin"]
        assert "mul" in made.asm["ptx"]
        assert not re.findall(r"\b(?:fma|mad)\.\w*\.?f32|\.ftz", made.asm["ptx"])
