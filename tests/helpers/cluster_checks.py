"""Short checks of the embedded model that are run in one process and on workers, and what must be the same of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MACHINE = ("clock", "environment")
"""Parts of run.json that tell when and where it was computed."""

SMALL = """\
documents: {data: pocket-heldout, max: 12, context: 64, bos: auto}
noise_floor: [batch_size]
measures: [divergence, perplexity, layer_error, weight_error, outliers, coverage,
  {measure: tasks, bos: auto, tasks: [pocket_facts], limit: 6},
  {measure: generation, bos: auto, max: 4, prompt_tokens: 8, new_tokens: 4, batch_size: 2},
  {measure: latency, repeats: 2, prompt_tokens: 8, new_tokens: 2}]
"""
BROAD = """\
documents: {data: pocket-heldout, max: 40, context: 128, bos: auto}
noise_floor: [batch_size, padding_side]
measures: [logits, divergence, perplexity, calibration, layer_error, weight_error, coverage, outliers, memory, artifact,
  comparability, {measure: tasks, bos: auto, tasks: [pocket_facts, pocket_sums], limit: 20},
  {measure: generation, bos: auto, max: 8, prompt_tokens: 16, new_tokens: 8, batch_size: 4},
  {measure: latency, repeats: 2, prompt_tokens: 16, new_tokens: 2}]
"""
DRAWN = """\
documents: {data: pocket-heldout, min: 20, max: 160, context: 64, bos: auto}
noise_floor: [batch_size]
measures: [divergence, perplexity]
"""
ITEMS = """\
documents: {data: pocket-heldout, max: 4, context: 32, bos: auto}
measures: [divergence, {measure: tasks, bos: auto, items: {min: 20, max: 60}, tasks: [pocket_facts, pocket_sums]}]
"""
GATE = """\
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: LIMIT, why: any number}
"""
ITEM_RULES = """\
  - {rule: not_worse, metric: tasks.pocket_facts.accuracy, margin: 0.9, why: any number}
  - {rule: not_worse, metric: tasks.pocket_sums.exact_match, margin: 0.001, why: less than one item}
"""


def write_check(folder: Path, suite: str, limit: float, matrix: str = "", run: str = "") -> Path:
    """A variant file of the embedded model, with its suite and gate."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s.yaml").write_text(suite)
    (folder / "g.yaml").write_text(GATE.replace("LIMIT", str(limit)) + ITEM_RULES * ("items:" in suite))
    bits = "$bits" if matrix else "4"
    text = (
        "name: v\nreference: {model: pocket}\n"
        f"variant: {{compress: [{{backend: round_to_nearest, bits: {bits}}}]}}\n"
        f"suites: [./s.yaml]\ngates: [./g.yaml]\n{matrix}{run}"
    )
    path = folder / f"{'ray' if run else 'plain'}.yaml"
    path.write_text(text)
    return path


def read_same(folder: Path) -> dict[str, Any]:
    """run.json without the clock, the machine, times, and the paths of the files."""
    text = (folder / "run.json").read_text()
    run: dict[str, Any] = json.loads(text.replace(str(folder.absolute().parents[1]), ""))
    for part in MACHINE:
        del run[part]
    run["asked"]["source"] = ""
    run["measurements"] = [each for each in run["measurements"] if not each["name"].startswith("latency.")]
    return run
