"""QLoRA on the embedded model: what tuning for one task gains on it, and what it costs elsewhere. A script, not a test.

    python tests/bench/qlora.py --page .github/TRAINING.md

NF4 alone, and NF4 with adapters that were trained on questions which combine two facts, are checked like a user's
variants. The gain over NF4 alone is paired item by item, and token by token with documents as clusters; intervals are
those of 95 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.errors import HarnessError
from harness.plan import make_plan
from harness.pocket.tasks import task_items
from harness.statistics import mean, mean_interval
from harness.system.environment import prepare_threads
from harness.tables.store import StoreReader
from tests.bench.methods import Lines, bits

if TYPE_CHECKING:
    import pandas as pd

    from harness.concluding.pair import Observed

HEADING = "## QLoRA, tuned for one task"
TUNED, SEED = "pocket_two_hop", 101
"""The task, and the seed of the items that are trained on: those of the suite have another."""
TEXTS, HELD_OUT = 1024, 32
SUITE = {
    "documents": {"data": "pocket-heldout", "max": 100, "context": 256},
    "measures": [
        "divergence",
        "perplexity",
        "memory",
        {
            "measure": "tasks",
            "bos": "auto",
            "tasks": [TUNED, *(f"pocket_{name}" for name in ("facts", "crowd", "recall_far", "sums4", "requests"))],
        },
    ],
}
GATE = {"rules": [{"rule": "at_most", "metric": "divergence.kl_mean", "limit": 100.0, "why": "everything is shown"}]}
QLORA: dict[str, object] = {
    "backend": "qlora",
    "r": 8,
    "alpha": 16.0,
    "learning_rate": 1e-3,
    "batch": 16,
    "evaluations": 5,
}
ALONE, TRAINED = "NF4, double quantized", "QLoRA, adapter beside it"
RECIPES: dict[str, list[dict[str, object]]] = {
    ALONE: [{"backend": "round_to_nearest", "format": "nf4", "double_quantize": True}],
    TRAINED: [QLORA],
    "QLoRA, merged": [QLORA | {"merge": True}],
}


@dataclass(frozen=True)
class Row:
    """One variant: its run and its tables."""

    observed: Observed
    tables: Path

    def table(self, name: str, *columns: str) -> pd.DataFrame:
        """Columns of a table."""
        read = StoreReader(self.tables).read("suite", name, columns)
        assert read is not None
        return read


def write_training(path: Path, texts: int) -> None:
    """Prompts and answers, one a line."""
    rows = ({"prompt": item["prompt"], "text": f" {item['target']}"} for item in task_items(TUNED, texts, SEED))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def run(folder: Path, steps: int, limit: int | None) -> dict[str, Row]:
    """Every recipe. limit: items of a task, for a quick try."""
    from harness.run import run_group

    write_training(folder / "questions.jsonl", TEXTS + HELD_OUT)
    suite = json.loads(json.dumps(SUITE))
    if limit:
        suite["measures"][-1]["limit"] = suite["documents"]["max"] = limit
    for name, content in (("suite", suite), ("gate", GATE)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    training = {"data": "questions.jsonl", "prompt_field": "prompt", "tokens": 128, "steps": steps}
    training |= {"documents": TEXTS, "held_out": HELD_OUT}
    files = []
    for number, recipe in enumerate(RECIPES.values()):
        content = {
            "name": f"v{number}",
            "reference": {"model": "pocket"},
            "variant": {"compress": recipe},
            "suites": ["./suite.yaml"],
            "gates": ["./gate.yaml"],
        }
        files.append(folder / f"v{number}.yaml")
        files[-1].write_text(yaml.safe_dump(content | ({"training": training} if "qlora" in str(recipe) else {})))
    folders = [file.with_suffix("") for file in files]
    results = run_group([make_plan(file) for file in files], folders, Lines())
    rows = {}
    for name, out, result in zip(RECIPES, folders, results, strict=True):
        if isinstance(result, HarnessError):
            raise result
        rows[name] = Row(result, out / "tables")
    return rows


def scores(row: Row) -> dict[str, list[float]]:
    """Scores of the items, by task, in the order of their documents."""
    table = row.table("items", "task", "doc_id", "variant_score").sort_values(["task", "doc_id"])
    return {str(task): group["variant_score"].tolist() for task, group in table.groupby("task")}


def differences(row: Row, other: Row) -> Iterator[tuple[str, str, str]]:
    """(what is compared, both values, difference of ``row`` from ``other`` with its interval)."""
    mine, theirs = scores(row), scores(other)
    for task in sorted(mine, key=lambda task: (task != TUNED, task)):
        pairs = list(zip(mine[task], theirs[task], strict=True))
        shown = f"{100 * mean(theirs[task]):.1f} % → {100 * mean(mine[task]):.1f} %"
        yield task, shown, show([100 * (a - b) for a, b in pairs], list(range(len(pairs))), "{:+.2f}") + " points"
    tokens, others = (each.table("tokens", "document", "kl", "variant_nll") for each in (row, other))
    for column, title in (("kl", "KL from the reference, texts"), ("variant_nll", "NLL of texts")):
        mean_before, mean_now = others[column].mean(), tokens[column].mean()
        changes = (tokens[column] - others[column]).tolist()
        yield title, f"{mean_before:.4f} → {mean_now:.4f}", show(changes, tokens["document"].tolist(), "{:+.4f}")


def show(values: list[float], clusters: list[int], form: str) -> str:
    found, value = mean_interval(values, clusters), form.format(mean(values))
    if found is None or found.low == found.high:
        return f"{value} (no item differs)"
    text = f"{value} [{form.format(found.low)}, {form.format(found.high)}]"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def section(rows: dict[str, Row], command: str) -> Iterator[str]:
    """The lines of the section."""
    yield from (HEADING, "", f"Made by `{command}`.", "")
    yield (
        f"Adapters of rank {QLORA['r']} on all linear layers of pocket beside a base of NF4 in groups of 64 with "
        f"double quantization, trained on {TEXTS:,} questions that combine two facts, of which the answer alone is "
        "learned. Bold: the 95 % interval of the paired difference excludes 0."
    )
    yield from ("", f"| | NF4 alone → {TRAINED} | difference |", "|---|---|---|")
    for what, both, difference in differences(rows[TRAINED], rows[ALONE]):
        yield f"| {what} | {both} | {difference} |"
    yield from ("", "| variant | bits per weight of the base | bytes | seconds to make |", "|---|---:|---:|---:|")
    for name, row in rows.items():
        size = sum(module.stored_bytes for module in row.observed.variant.modules)
        kept = any(module.backend for module in row.observed.variant.modules)
        width = f"{bits(row.observed):.3f}" if kept else "floats"
        yield f"| {name} | {width} | {size:,} | {row.observed.seconds['make variant']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, required=True, help="the page that holds the section, or will")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--limit", type=int, help="items of a task, and documents")
    options = parser.parse_args()
    prepare_threads()
    with tempfile.TemporaryDirectory() as name:
        rows = run(Path(name), options.steps, options.limit)
        lines = "\n".join(section(rows, f"python tests/bench/qlora.py --page {options.page}"))
    text = options.page.read_text(encoding="utf-8") if options.page.exists() else "# Training\n"
    before, _, after = text.partition(HEADING)
    _, mark, rest = after.partition("\n## ")
    options.page.write_text(f"{before.rstrip()}\n\n{lines}\n{mark}{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
