"""Reports of large runs: 200 layers, 5,000 documents, 1,000 rules, and a mixture of 100 layers of 64 experts.

Shows their size, and their time beside that of a small one.

    python -m tests.bench.large_report

The size is asserted in test_large_report.py; the time is a figure of the machine, so it is only shown.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from harness.records import Run, Verdict
from harness.system import resources
from harness.writers.report_html import render
from tests.helpers.made_run import Made, make_run
from tests.helpers.made_tables import MadeTables

LAYERS, DOCUMENTS, RULES = 200, 5_000, 1_000
BUDGET_BYTES, BUDGET_SECONDS = 5_000_000, 5.0


def make_large_run(layers: int = LAYERS, documents: int = DOCUMENTS, rules: int = RULES) -> Made:
    """A failing run: the tables of a small one, with as many documents, layers and rules as asked."""
    small = make_run("fail", documents=40, length=40)
    frames = dict(small.tables.frames)
    frames["layers"] = _make_layers(layers, documents)
    first = frames["documents"].iloc[0]
    kinds = [f"kind {index % 20}" for index in range(documents)]
    names = [f"document {index}" for index in range(documents)]
    frames["documents"] = pd.DataFrame([first] * documents).assign(
        document=np.arange(documents, dtype=np.int32), id=names, kind=kinds
    )
    tokens = frames["tokens"]
    frames["tokens"] = pd.concat([tokens] * (documents * 20 // len(tokens) + 1), ignore_index=True).assign(
        document=lambda frame: (np.arange(len(frame)) % documents).astype(np.int32)
    )
    return Made(_repeat_rules(small.run, rules), MadeTables(frames))


def make_mixture_run(layers: int = 100, experts: int = 64) -> Made:
    """A run of many layers with all their modules, every one of them a mixture of experts."""
    small = make_run("fail", documents=40, length=40, layers=layers)
    names = [(f"model.layers.{layer}.mlp.experts", expert) for layer in range(layers) for expert in range(experts)]
    routed = [(side, *name, 50, 40, 9) for side in ("reference", "variant") for name in names]
    rng = np.random.default_rng(5)
    errors = [(*name, matrix, rng.lognormal(-2.5, 0.4)) for name in names for matrix in ("gate_up_proj", "down_proj")]
    added = {
        "experts": pd.DataFrame(routed, columns=["side", "module", "expert", "tokens", "agreeing", "calibration"]),
        "expert_weights": pd.DataFrame(errors, columns=["module", "expert", "matrix", "relative_error"]),
    }
    return Made(small.run, MadeTables(small.tables.frames | added))


def _make_layers(layers: int, documents: int) -> pd.DataFrame:
    modules = [(f"model.layers.{k}{end}", kind) for k in range(layers) for end, kind in ENDS]
    count = len(modules)
    error = np.tile(np.linspace(0.001, 0.1, count), documents)
    return pd.DataFrame(
        {
            "document": np.repeat(np.arange(documents, dtype=np.int32), count),
            "module": np.tile(np.array([name for name, _ in modules], dtype=object), documents),
            "kind": np.tile(np.array([kind for _, kind in modules], dtype=object), documents),
            "depth": np.tile(np.arange(count, dtype=np.int32), documents),
            "sum_squared_error": error,
            "sum_squared_reference": 1.0,
            "sum_squared_variant": 1.0 + error,
            "dot": 1.0,
        }
    )


ENDS = (("", "block"), (".mlp.down_proj", "linear"))


def _repeat_rules(run: Run, rules: int) -> Run:
    verdicts: list[Verdict] = []
    for index in range(rules):
        one = run.verdicts[index % len(run.verdicts)]
        verdicts.append(one.model_copy(update={"gate": f"gate {index // len(run.verdicts) % 4}"}))
    return run.model_copy(update={"verdicts": tuple(verdicts)})


def measure(made: Made) -> tuple[int, float]:
    """Bytes of the report, and processor seconds to make it."""
    start = time.process_time()
    text = render(made.run, made.tables, resources.folder("reports"))
    return len(text.encode()), time.process_time() - start


def main() -> None:
    small_size, small_seconds = measure(make_run("fail"))
    size, seconds = measure(make_large_run())
    print(f"small run: {small_size / 1e6:.2f} MB in {small_seconds:.2f} s")
    print(f"{LAYERS} layers, {DOCUMENTS} documents, {RULES} rules: {size / 1e6:.2f} MB (budget {BUDGET_BYTES / 1e6})")
    print(f"in {seconds:.2f} s (budget {BUDGET_SECONDS}), {seconds / small_seconds:.1f} times as long")
    size, seconds = measure(make_mixture_run())
    print(f"100 layers of 64 experts: {size / 1e6:.2f} MB in {seconds:.2f} s")


if __name__ == "__main__":
    main()
