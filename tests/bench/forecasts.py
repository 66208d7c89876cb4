"""Forecasts of ``harness plan`` beside runs, on texts and tasks, as a page with one table. A script.

    OMP_NUM_THREADS=1 python tests/bench/forecasts.py --out .github/FORECASTS.md [--only pocket 15M] [--documents 2]

Processor seconds are compared, since other work on the machine slows only the clock. The models are random, but for the
embedded one: time and memory do not ask what weights say.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from harness.forecast.cost import cost
from harness.plan import make_plan
from harness.pocket import MODEL_DIR
from harness.system.environment import describe_environment


@dataclass(frozen=True)
class Case:
    """A model and what it is checked on. shape: hidden, feed-forward, layers, heads, KV heads, vocabulary; empty: the
    embedded model. items: of each task."""

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    documents: int = 40
    context: int = 256
    tasks: tuple[str, ...] = ("pocket_facts", "pocket_sums", "pocket_recall")
    items: int = 40


@dataclass(frozen=True)
class Row:
    """One run: seconds of the processor and bytes, forecast and measured."""

    name: str
    forecast_seconds: float
    seconds: float
    forecast_bytes: float
    peak_bytes: float


CASES = {
    "0.3M": Case((64, 172, 5, 8, 4, 1536)),
    "pocket": Case(),
    "15M": Case((288, 768, 6, 6, 6, 32000)),
    "44M": Case((512, 1376, 8, 8, 8, 32000)),
    "1.1B": Case((2048, 5632, 22, 32, 4, 32000), "bfloat16", 6, 128, ("pocket_facts",), 8),
}
MEASURES = ("logits", "divergence", "perplexity", "layer_error", "weight_error", "memory", "coverage", "artifact")
DESCRIPTION = """
What `harness plan` says of time and memory, and what `harness check` then takes: a 4-bit variant that is made, saved
and read back, texts in the shared pass, and items of tasks. Seconds are those of the processor, with one thread.
"""


def main() -> None:
    """Check every case and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page")
    parser.add_argument("--only", nargs="*", default=list(CASES), help="cases, all by default")
    parser.add_argument("--documents", type=int, help="documents and items of each case at most")
    options = parser.parse_args()
    rows = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, write_case(CASES[name], Path(folder), options.documents)))
        options.out.write_text(render(rows), encoding="utf-8")


def write_case(case: Case, folder: Path, most: int | None = None) -> Path:
    """The variant file of a case, with its model, suite and gate. most: documents and items at most."""
    if case.shape:
        _save_model(case, folder / "model")
    limit = {"limit": min(case.items, most or case.items)}
    tasks = {"measure": "tasks", "tasks": list(case.tasks)} | limit
    documents = {"data": "pocket-heldout", "max": min(case.documents, most or case.documents), "context": case.context}
    rule = {"rule": "at_most", "metric": "divergence.kl_mean", "limit": 100.0, "decide": "point", "why": "no limit"}
    steps = [{"backend": "round_to_nearest", "bits": 4, "group_size": 32}]
    contents: dict[str, Any] = {
        "suite": {"documents": documents, "measures": [*MEASURES, tasks]},
        "gate": {"rules": [rule]},
        "variant": {
            "name": "forecast",
            "reference": {"model": "./model" if case.shape else "pocket", "dtype": case.dtype},
            "variant": {"compress": steps},
            "suites": ["./suite.yaml"],
            "gates": ["./gate.yaml"],
            "weak_reference": "its weights are random",
        },
    }
    for name, content in contents.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "variant.yaml"


def _save_model(case: Case, folder: Path) -> None:
    hidden, inner, layers, heads, kv_heads, vocabulary = case.shape
    torch.manual_seed(0)
    make: Any = LlamaConfig
    config = make(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.to(getattr(torch, case.dtype)).save_pretrained(folder)
    for path in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(path, folder)


def measure(name: str, file: Path) -> Row:
    """Forecast a variant file, and check it in a process of its own."""
    expected = cost(make_plan(file), None)
    command = [sys.executable, "-m", "harness", "check", str(file), "--out", str(file.parent / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1, 3):
        raise SystemExit(f"{name}: the check ended with {os.waitstatus_to_exitcode(status)}")
    seconds, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    return Row(name, expected.seconds or 0.0, seconds, expected.memory or 0.0, peak)


def render(rows: Sequence[Row]) -> str:
    """The page."""
    here = describe_environment()
    made = f"{datetime.now(UTC).date()}, {here.processor}, torch {here.packages['torch']}"
    lines = [
        "# Forecasts",
        DESCRIPTION,
        f"Made by `python tests/bench/forecasts.py --out .github/FORECASTS.md` on {made}.\n",
        "| model | seconds, forecast | seconds, measured | ratio | GB, forecast | GB, measured | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = f"{row.forecast_seconds:.0f} | {row.seconds:.0f} | {row.forecast_seconds / row.seconds:.2f}"
        forecast, peak = row.forecast_bytes, row.peak_bytes
        size = f"{forecast / 1e9:.2f} | {peak / 1e9:.2f} | {forecast / peak:.2f}"
        lines.append(f"| {row.name} | {seconds} | {size} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
