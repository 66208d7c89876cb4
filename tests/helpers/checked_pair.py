"""Two folders of models made on the spot, one checked against the other, and what was said."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from harness.check import check
from harness.errors import HarnessError
from harness.pocket import MODEL_DIR
from harness.terminal import Terminal

SUITE = """\
description: a few documents
documents: {{data: pocket-heldout, max: 12, context: 96{documents}}}
measures: [divergence, perplexity]
"""
GATE = """\
description: any
rules:
- {rule: not_worse, metric: perplexity.ratio, margin: 0.9, why: any}
- {rule: at_most, metric: divergence.kl_mean, limit: 0.9, why: any}
"""
VOCABULARY = 1536
"""Number of tokens of the embedded model."""


@dataclass(frozen=True)
class Said:
    """The exit code, the text on the terminal, and the content of run.json (empty without one)."""

    code: int
    terminal: str
    run: dict[str, Any]

    def notes(self, topic: str) -> list[str]:
        """Texts of the notes on a topic."""
        return [note["text"] for note in self.run.get("notes", ()) if note["topic"] == topic]

    def value(self, metric: str, of: str) -> float:
        """A field of the first measurement of a metric."""
        return float(next(m[of] for m in self.run["measurements"] if m["name"] == metric))


def copy_pocket(folder: Path) -> Path:
    """The embedded model as a folder that may be edited."""
    return Path(shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("manifest.json", "*.md")))


def save_with_tokenizer(model: PreTrainedModel, folder: Path) -> Path:
    """A model over the embedded model's tokens."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder)
    return folder


def edit(path: Path, drop: tuple[str, ...] = (), **fields: Any) -> None:
    """Set and remove keys of a JSON file."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in drop}))


def check_pair(
    desk: Path,
    reference: str = "{model: ./ref}",
    variant: str = "{model: ./var}",
    more: str = "",
    documents: str = "",
    suite: str = "./suite.yaml",
) -> Said:
    """Check the folder var against the folder ref of ``desk``. more: further lines of the variant file."""
    (desk / "suite.yaml").write_text(SUITE.format(documents=documents))
    (desk / "gate.yaml").write_text(GATE)
    lines = f"reference: {reference}\nvariant: {variant}\n{more}\nsuites: [{suite}]\ngates: [./gate.yaml]\n"
    (desk / "v.yaml").write_text(f"name: v\n{lines}")
    stream, runs = io.StringIO(), desk / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    try:
        code = check([desk / "v.yaml"], runs, Terminal(Console(file=stream, width=2000)))
    except HarnessError as error:
        code, _ = 2, stream.write(str(error))
    saved = runs / "v/run.json"
    return Said(code, stream.getvalue(), json.loads(saved.read_text()) if saved.exists() else {})
