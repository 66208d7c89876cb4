"""How long a sweep takes in one process, and on one and two workers of a Ray cluster on this machine. A script.

    python tests/bench/cluster_speed.py                          8 variants, 200 documents: some minutes on two cores
    python tests/bench/cluster_speed.py --documents 20 --bits 4 8    four variants
    python tests/bench/cluster_speed.py --model FOLDER --data FILE    a larger model, whose units weigh more

One thread a process. Times are of the whole command, the start of Python included, with the load of the machine beside
them; the cluster is up before. Every record must have the same bits, or the script ends with an error.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers.cluster_checks import read_same, write_check
from tests.helpers.local_cluster import local_cluster

ROOT = Path(__file__).parents[2]
SUITE = """\
documents: {{data: {data}, max: {documents}, context: {context}, bos: auto}}
measures: [logits, divergence, perplexity, calibration, layer_error, outliers, coverage]
"""


def take_time(folder: Path, suite: str, model: str, bits: str, name: str, run: str) -> tuple[float, float]:
    """Seconds of one check, and of them those in which units are handed out (all of them without a cluster)."""
    path = write_check(folder, suite, 9.0, f"matrix: {{bits: {bits}, by: [tensor, channel]}}\n", run)
    text = path.read_text().replace("bits: $bits", "bits: $bits, granularity: $by")
    path.write_text(text.replace("{model: pocket}", f"{{model: {model}}}") + "weak_reference: its speed is measured\n")
    command = [sys.executable, "-m", "harness", "check", str(path), "--out", str(folder / name)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    began = time.perf_counter()
    told, lines = [], []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as check:
        for line in check.stdout or ():
            lines.append(line)
            if line.startswith("  units ("):
                told.append(time.perf_counter())
    seconds = time.perf_counter() - began
    if check.returncode not in (0, 1):
        raise SystemExit("".join(lines))
    # The first line is about the unit in which the models are described.
    return seconds, told[-1] - told[0] if told else seconds


def main() -> None:
    """Run each way, compare the records, print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--bits", type=int, nargs="*", default=[3, 4, 6, 8])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--data", default="pocket-heldout")
    parser.add_argument("--context", type=int, default=512)
    asked = parser.parse_args()
    suite, bits = SUITE.format(**vars(asked)), str(asked.bits)
    with tempfile.TemporaryDirectory() as made, local_cluster(2, memory=8e9) as cluster:
        folder, best = Path(made), dict.fromkeys(["one process", "1 worker", "2 workers"], float("inf"))
        units = dict(best)
        for _ in range(asked.repeats):
            for workers, name in enumerate(best):
                run = f"run: {{ray: '{cluster.address}', workers: {workers}}}\n" if workers else ""
                seconds, handing = take_time(folder, suite, asked.model, bits, f"runs{workers}-{time.time_ns()}", run)
                best[name], units[name] = min(best[name], seconds), min(units[name], handing)
                print(f"{name}: {seconds:.1f} s, units {handing:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        outs = sorted(folder.glob("runs*"))
        for variant in sorted(path.name for path in outs[0].iterdir() if path.is_dir()):
            if any(read_same(out / variant) != read_same(outs[0] / variant) for out in outs[1:]):
                raise SystemExit(f"{variant}: the records differ")
        print(f"one worker takes {best['1 worker'] / best['one process']:.2f} times as long as one process")
        print(f"two workers are {best['1 worker'] / best['2 workers']:.2f} times as fast as one")
        print(f"with units alone, {units['1 worker'] / units['2 workers']:.2f} times")


if __name__ == "__main__":
    main()
