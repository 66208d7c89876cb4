"""JSON files of a model folder, for variations that change them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.selftest.mutants import NotApplicable


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises NotApplicable if there is no such file."""
    if not path.is_file():
        raise NotApplicable(f"{path.name} is missing")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the content of a file."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
