"""Folders of the embedded model whose files are changed: what two sides of a comparison are made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.comparability import Sides, compare_sides, read_side
from harness.pocket import MODEL_DIR
from harness.records import Comparison, Difference

Json = dict[str, Any]
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_folder(to: Path, weights: bool = False) -> Path:
    """A copy of the embedded model, without its manifest."""
    left_out = ["manifest.json", "training.json", "*.md", *([] if weights else ["*.safetensors"])]
    return Path(shutil.copytree(MODEL_DIR, to, ignore=shutil.ignore_patterns(*left_out)))


def edit(path: Path, change: Callable[[Json], Any] | None = None, **new: Any) -> Path:
    """Change the object in a JSON file (made if missing) by new values, then by a function; returns its folder."""
    content: Json = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content |= new
    if change is not None:
        change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path.parent


def compare(reference: Path, variant: Path, texts: tuple[str, ...] = ()) -> Comparison:
    """The comparison of two folders."""
    return compare_sides(Sides(read_side(reference, "reference"), read_side(variant, "variant"), texts))


def find(comparison: Comparison, part: str) -> list[Difference]:
    """The differences of one part."""
    return [each for each in comparison.differences if each.part == part]


class Pair:
    """Two copies of the embedded model, without weights."""

    def __init__(self, folder: Path) -> None:
        self.reference, self.variant = make_folder(folder / "ref"), make_folder(folder / "var")

    def compare(self, *texts: str) -> Comparison:
        """The comparison of both."""
        return compare(self.reference, self.variant, texts)

    def find(self, part: str) -> list[Difference]:
        """The differences of one part."""
        return find(self.compare(), part)

    def edit(self, name: str, change: Callable[[Json], Any] | None = None, **new: Any) -> None:
        """Change a file of the variant."""
        edit(self.variant / name, change, **new)
