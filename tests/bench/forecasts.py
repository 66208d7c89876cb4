"""Forecasts beside runs: ``python tests/bench/forecasts.py variant.yaml …`` checks each file and prints both.

Processor seconds are compared, since other work on the machine slows only the clock; run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.forecast.cost import cost
from harness.plan import make_plan


def main(files: list[str]) -> None:
    """Print one line a file."""
    print("| file | forecast s | processor s | ratio | forecast GB | peak GB | ratio |\n|---|---|---|---|---|---|---|")
    for file in files:
        found = cost(make_plan(Path(file)), None)
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "harness", "check", file, "--out", out]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, _, usage = os.wait4(process.pid, 0)
        seconds, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9
        expected, memory = found.seconds or 0.0, (found.memory or 0.0) / 1e9
        print(
            f"| {file} | {expected:.0f} | {seconds:.0f} | {expected / seconds:.2f} "
            f"| {memory:.2f} | {peak:.2f} | {memory / peak:.2f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
