"""metrics.json: flat numbers by name, which ``dvc metrics diff`` and scripts read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from harness.records import Run
from harness.report.numbers import flatten
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer


class MetricsJson(Writer):
    """metrics.json: every number of the run by name, flat, for `dvc metrics diff` and scripts."""

    file_name: ClassVar[str] = "metrics.json"

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write metrics.json atomically. Raises WriteError."""
        path = folder / self.file_name
        text = json.dumps(flatten(run), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        write_atomic(path, f"{text}\n".encode())
        return path
